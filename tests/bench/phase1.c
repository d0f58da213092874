/* The arithmetic that one side of ISAKMP main mode cannot do without, in OpenSSL's libcrypto.
 *
 *   phase1 exchange GROUP TIMES   one key exchange: a fresh private value, its public one, and the
 *                                 secret shared with a peer. GROUP: modp_2048, modp_3072, P-256
 *   phase1 prove KEY TIMES        one signature made and one verified, over 32 octets: rsa2048, P-256
 *
 * Prints the median of the processor's seconds for one time.
 */
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "median.h"

static void fail(const char *what)
{
    fprintf(stderr, "phase1: %s\n", what);
    exit(1);
}

static EVP_PKEY *fresh(const char *group)
{
    int modp = strncmp(group, "modp", 4) == 0;
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_name(NULL, modp ? "DH" : "EC", NULL);
    OSSL_PARAM parameters[] = {
        OSSL_PARAM_construct_utf8_string("group", (char *)group, 0),
        OSSL_PARAM_construct_end(),
    };
    EVP_PKEY *key = NULL;

    if (context == NULL || EVP_PKEY_keygen_init(context) != 1 ||
        EVP_PKEY_CTX_set_params(context, parameters) != 1 || EVP_PKEY_generate(context, &key) != 1)
        fail("EVP_PKEY_generate");
    EVP_PKEY_CTX_free(context);
    return key;
}

static void exchange(const char *group, EVP_PKEY *peer)
{
    unsigned char shared[1024];
    size_t length = sizeof shared;
    EVP_PKEY *key = fresh(group);
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new(key, NULL);

    if (context == NULL || EVP_PKEY_derive_init(context) != 1 ||
        EVP_PKEY_derive_set_peer_ex(context, peer, 0) != 1 ||
        EVP_PKEY_derive(context, shared, &length) != 1)
        fail("EVP_PKEY_derive");
    EVP_PKEY_CTX_free(context);
    EVP_PKEY_free(key);
}

static void prove(EVP_PKEY *key)
{
    static const unsigned char digest[32] = {1};
    unsigned char signature[1024];
    size_t length = sizeof signature;
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new(key, NULL);

    if (context == NULL || EVP_PKEY_sign_init(context) != 1 ||
        EVP_PKEY_sign(context, signature, &length, digest, sizeof digest) != 1)
        fail("EVP_PKEY_sign");
    if (EVP_PKEY_verify_init(context) != 1 ||
        EVP_PKEY_verify(context, signature, length, digest, sizeof digest) != 1)
        fail("EVP_PKEY_verify");
    EVP_PKEY_CTX_free(context);
}

int main(int argc, char **argv)
{
    int times = argc == 4 ? atoi(argv[3]) : 0;
    int exchanges = argc == 4 && strcmp(argv[1], "exchange") == 0;
    double *taken = times > 0 ? calloc((size_t)times, sizeof *taken) : NULL;
    EVP_PKEY *key;

    if (taken == NULL || (!exchanges && strcmp(argv[1], "prove") != 0)) {
        fprintf(stderr, "usage: phase1 exchange GROUP TIMES | phase1 prove KEY TIMES\n");
        return 2;
    }
    if (exchanges)
        key = fresh(argv[2]);
    else
        key = strcmp(argv[2], "rsa2048") == 0 ? EVP_RSA_gen(2048) : EVP_EC_gen(argv[2]);
    if (key == NULL)
        fail("no key");
    for (int i = 0; i < times; i++) {
        double began = now();

        if (exchanges)
            exchange(argv[2], key);
        else
            prove(key);
        taken[i] = now() - began;
    }
    qsort(taken, (size_t)times, sizeof *taken, rising);
    printf("%.9f\n", taken[times / 2]);
    return 0;
}
