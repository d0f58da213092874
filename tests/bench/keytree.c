/* What a key tree's changes cost in C, with OpenSSL's libcrypto and nothing else of ours.
 *
 *   keytree wrap KEYS OCTETS TIMES   one eviction's cipher: as many keys of IV | key, each encrypted
 *                                    under another, AES-CBC; after fresh random keys for them
 *   keytree plant KEYS OCTETS TIMES  fresh random keys, one at a time, into a flat array
 *
 * Prints the median of the processor's seconds for one time.
 */
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "median.h"

#define BLOCK 16

static void fail(const char *what)
{
    fprintf(stderr, "keytree: %s\n", what);
    exit(1);
}

static void fresh(unsigned char *place, size_t octets)
{
    while (octets > 0) {
        ssize_t got = getrandom(place, octets, 0);

        if (got < 0)
            fail("getrandom");
        place += got;
        octets -= (size_t)got;
    }
}

static void wrap(EVP_CIPHER_CTX *context, const EVP_CIPHER *cipher, const unsigned char *under,
                 const unsigned char *material, size_t octets, unsigned char *wrapped)
{
    int length;

    if (EVP_EncryptInit_ex2(context, cipher, under + BLOCK, under, NULL) != 1 ||
        EVP_CIPHER_CTX_set_padding(context, 0) != 1 ||
        EVP_EncryptUpdate(context, wrapped, &length, material, (int)octets) != 1)
        fail("EVP_EncryptUpdate");
}

int main(int argc, char **argv)
{
    if (argc != 5)
        fail("usage: keytree wrap|plant KEYS OCTETS TIMES");
    int wraps = !strcmp(argv[1], "wrap");
    size_t keys = strtoul(argv[2], NULL, 10), octets = strtoul(argv[3], NULL, 10);
    size_t times = strtoul(argv[4], NULL, 10);
    if (!keys || !times || (octets != 32 && octets != 48))
        fail("OCTETS must be 32 or 48, the others at least 1");
    unsigned char *tree = malloc(keys * octets), *renewed = malloc(keys * octets), wrapped[48];
    double *taken = malloc(times * sizeof *taken);
    EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
    EVP_CIPHER *cipher = EVP_CIPHER_fetch(NULL, octets == 32 ? "AES-128-CBC" : "AES-256-CBC", NULL);
    if (!tree || !renewed || !taken || !context || !cipher)
        fail("no memory, or no AES");
    fresh(tree, keys * octets);

    for (size_t time = 0; time < times; time++) {
        double began = now();

        if (wraps) {
            fresh(renewed, keys * octets);
            for (size_t i = 0; i < keys; i++)
                wrap(context, cipher, tree + i * octets, renewed + i * octets, octets, wrapped);
        } else {
            for (size_t i = 0; i < keys; i++)
                fresh(tree + i * octets, octets);
        }
        taken[time] = now() - began;
    }
    qsort(taken, times, sizeof *taken, rising);
    printf("%.9f\n", taken[times / 2]);
    return 0;
}
