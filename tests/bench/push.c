/* What a PUSH costs in C: one signature and one encryption, with OpenSSL's libcrypto.
 *
 *   push rsa|ecdsa OCTETS TIMES   RSA-2048 PKCS #1 v1.5 or ECDSA P-256, with SHA-256; AES-256-CBC
 *
 * Prints the median of the processor's seconds for one.
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
    fprintf(stderr, "push: %s\n", what);
    exit(1);
}

int main(int argc, char **argv)
{
    if (argc != 4)
        fail("usage: push rsa|ecdsa OCTETS TIMES");
    size_t octets = strtoul(argv[2], NULL, 10) / 16 * 16, times = strtoul(argv[3], NULL, 10);
    EVP_PKEY *key = strcmp(argv[1], "rsa") ? EVP_EC_gen("P-256") : EVP_RSA_gen(2048);
    EVP_CIPHER *cipher = EVP_CIPHER_fetch(NULL, "AES-256-CBC", NULL);
    EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
    EVP_MD_CTX *digest = EVP_MD_CTX_new();
    unsigned char *plain = calloc(1, octets), *sealed = malloc(octets + 16), signature[512];
    unsigned char kek[32] = {1}, iv[16] = {2};
    double *taken = malloc(times * sizeof *taken);
    if (!key || !cipher || !context || !digest || !plain || !sealed || !taken)
        fail("no memory, or no algorithm");

    for (size_t time = 0; time < times; time++) {
        double began = now();
        size_t signed_octets = sizeof signature;
        int length;

        if (EVP_DigestSignInit(digest, NULL, EVP_sha256(), NULL, key) != 1 ||
            EVP_DigestSign(digest, signature, &signed_octets, plain, octets) != 1)
            fail("EVP_DigestSign");
        memcpy(plain, signature, signed_octets < octets ? signed_octets : octets);
        if (EVP_EncryptInit_ex2(context, cipher, kek, iv, NULL) != 1 ||
            EVP_CIPHER_CTX_set_padding(context, 0) != 1 ||
            EVP_EncryptUpdate(context, sealed, &length, plain, (int)octets) != 1)
            fail("EVP_EncryptUpdate");
        EVP_MD_CTX_reset(digest);
        taken[time] = now() - began;
    }
    qsort(taken, times, sizeof *taken, rising);
    printf("%.9f\n", taken[times / 2]);
    return 0;
}
