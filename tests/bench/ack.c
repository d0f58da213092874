/* Acknowledgements (RFC 8263) in C, with OpenSSL's libcrypto and nothing else of ours.
 *
 *   ack send ADDRESS PORT FROM FILE RATE   sends the datagrams of FILE from their addresses and port
 *                                          FROM, RATE a second or, with 0, as fast as that goes;
 *                                          prints the seconds it took
 *   ack drain ADDRESS FILE SPI KEY         sends them to itself; then, its receive buffer full, reads
 *                                          them with recvmmsg and checks length, header, ID,
 *                                          duplicate and HASH with a key that is set already: prints
 *                                          how many it has read and the processor's seconds
 *
 * FILE: the octets of one datagram, 4 octets; then each: its address, 4 octets, and its octets. They
 * have a HASH of 32 octets and an IPv4 ID; KEY is ack_key, in hexadecimal as SPI is.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define MANY 256
#define LARGEST 256
#define HASH_AT 32
#define SEQ_AT 64
#define ID_AT 72
#define LENGTH 84
#define TRUESIZE 1024

static unsigned char *content;
static size_t each, count;

static void fail(const char *what)
{
    fprintf(stderr, "ack: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(clockid_t clock)
{
    struct timespec at;

    if (clock_gettime(clock, &at))
        fail("clock_gettime");
    return (double)at.tv_sec + 1e-9 * (double)at.tv_nsec;
}

static void load(const char *path)
{
    FILE *file = fopen(path, "rb");
    unsigned char head[4];

    if (!file || fread(head, 1, 4, file) != 4)
        fail(path);
    each = (size_t)head[0] << 24 | (size_t)head[1] << 16 | (size_t)head[2] << 8 | head[3];
    if (!each || each > LARGEST || fseek(file, 0, SEEK_END))
        fail(path);
    count = ((size_t)ftell(file) - 4) / (4 + each);
    content = malloc(count * (4 + each));
    if (!content || fseek(file, 4, SEEK_SET) || fread(content, 4 + each, count, file) != count)
        fail(path);
    fclose(file);
}

static int bound_to(const char *address, int port, struct sockaddr_in *name)
{
    int sock = socket(AF_INET, SOCK_DGRAM, 0);
    socklen_t length = sizeof *name;

    memset(name, 0, sizeof *name);
    name->sin_family = AF_INET;
    name->sin_port = htons((uint16_t)port);
    if (sock < 0 || !inet_aton(address, &name->sin_addr) ||
        bind(sock, (struct sockaddr *)name, sizeof *name) ||
        getsockname(sock, (struct sockaddr *)name, &length))
        fail("bind");
    return sock;
}

/* One sendmsg with its source address: what a socket of each member's own would send. */
static void say(int sock, struct sockaddr_in *to, const unsigned char *record)
{
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(struct in_pktinfo))];
    } control;
    struct iovec part = {(void *)(record + 4), each};
    struct msghdr message = {.msg_name = to, .msg_namelen = sizeof *to, .msg_iov = &part,
                             .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof control.room};
    struct in_pktinfo source = {0};

    memset(&control, 0, sizeof control);
    memcpy(&source.ipi_spec_dst, record, 4);
    control.head.cmsg_level = IPPROTO_IP;
    control.head.cmsg_type = IP_PKTINFO;
    control.head.cmsg_len = CMSG_LEN(sizeof source);
    memcpy(CMSG_DATA(&control.head), &source, sizeof source);
    while (sendmsg(sock, &message, 0) < 0)
        if (errno != ENOBUFS && errno != EAGAIN)
            fail("sendmsg");
}

static void send_all(const char *address, int port, int from, double rate)
{
    struct sockaddr_in to, mine;
    int sock = bound_to("0.0.0.0", from, &mine);

    memset(&to, 0, sizeof to);
    to.sin_family = AF_INET;
    to.sin_port = htons((uint16_t)port);
    if (!inet_aton(address, &to.sin_addr))
        fail(address);
    double began = now(CLOCK_MONOTONIC);
    for (size_t n = 0; n < count; n++) {
        if (rate > 0 && n % 32 == 0)
            while ((double)n > rate * (now(CLOCK_MONOTONIC) - began)) {
                struct timespec pause = {0, 100000};

                nanosleep(&pause, NULL);
            }
        say(sock, &to, content + n * (4 + each));
    }
    printf("%.6f\n", now(CLOCK_MONOTONIC) - began);
}

static size_t unhex(const char *text, unsigned char *octets, size_t room)
{
    size_t length = strlen(text) / 2;

    if (length > room)
        fail("key too long");
    for (size_t n = 0; n < length; n++)
        if (sscanf(text + 2 * n, "%2hhx", octets + n) != 1)
            fail("not hexadecimal");
    return length;
}

static EVP_MAC_CTX *keyed(const unsigned char *key, size_t length)
{
    EVP_MAC *mac = EVP_MAC_fetch(NULL, "HMAC", NULL);
    EVP_MAC_CTX *context = mac ? EVP_MAC_CTX_new(mac) : NULL;
    OSSL_PARAM parameters[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, (char *)"SHA256", 0),
        OSSL_PARAM_construct_end()};

    if (!context || EVP_MAC_init(context, key, length, parameters) != 1)
        fail("HMAC");
    return context;
}

/* Members by address: an open table, twice as large as it must be. */
static unsigned *places;
static size_t mask;

static size_t find(const unsigned char *id)
{
    uint32_t address;

    memcpy(&address, id + 8, 4);
    size_t at = ntohl(address) & mask;
    while (places[at] && memcmp(content + (places[at] - 1) * (4 + each) + 4 + ID_AT, id, 12))
        at = (at + 1) & mask;
    return at;
}

static void index_members(void)
{
    for (mask = 1; mask < 2 * count; mask *= 2)
        ;
    places = calloc(mask--, sizeof *places);
    if (!places)
        fail("no memory");
    for (size_t n = 0; n < count; n++)
        places[find(content + n * (4 + each) + 4 + ID_AT)] = (unsigned)n + 1;
}

static void drain(const char *address, const char *spi_text, const char *key_text)
{
    static unsigned char data[MANY][LARGEST], spi[16], key[64];
    static struct sockaddr_in names[MANY];
    static struct mmsghdr messages[MANY];
    static struct iovec parts[MANY];
    struct sockaddr_in mine;
    int sock = bound_to(address, 0, &mine), room = (int)(count * TRUESIZE / 2);
    unsigned char *heard = calloc(count, 1), usual[16];
    size_t counted = 0, read = 0;

    unhex(spi_text, spi, sizeof spi);
    EVP_MAC_CTX *context = keyed(key, unhex(key_text, key, sizeof key));
    index_members();
    memcpy(usual, content + 4 + 16, 16);
    if (setsockopt(sock, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room))
        fail("SO_RCVBUFFORCE");
    for (size_t n = 0; n < count; n++)
        say(sock, &mine, content + n * (4 + each));
    for (size_t n = 0; n < MANY; n++) {
        parts[n] = (struct iovec){data[n], LARGEST};
        messages[n].msg_hdr = (struct msghdr){.msg_name = &names[n], .msg_namelen = sizeof *names,
                                              .msg_iov = &parts[n], .msg_iovlen = 1};
    }
    double began = now(CLOCK_PROCESS_CPUTIME_ID);
    for (int many; (many = recvmmsg(sock, messages, MANY, MSG_DONTWAIT, NULL)) > 0; read += (size_t)many)
        for (int n = 0; n < many; n++) {
            unsigned char *datagram = data[n], digest[32];
            size_t at, length = sizeof digest;

            if (messages[n].msg_len != LENGTH || memcmp(datagram, spi, 16) ||
                memcmp(datagram + 16, usual, 16))
                continue;
            at = find(datagram + ID_AT);
            if (!places[at] || heard[places[at] - 1])
                continue;
            /* Without a key: the one that is set. */
            if (EVP_MAC_init(context, NULL, 0, NULL) != 1 ||
                EVP_MAC_update(context, datagram + SEQ_AT, LENGTH - SEQ_AT) != 1 ||
                EVP_MAC_final(context, digest, &length, sizeof digest) != 1)
                fail("HMAC");
            if (CRYPTO_memcmp(digest, datagram + HASH_AT, sizeof digest))
                continue;
            heard[places[at] - 1] = 1;
            counted++;
        }
    double taken = now(CLOCK_PROCESS_CPUTIME_ID) - began;
    if (counted != count)
        fail("not all have counted");
    printf("%zu %.6f\n", read, taken);
}

int main(int argc, char **argv)
{
    if (argc == 7 && !strcmp(argv[1], "send")) {
        load(argv[5]);
        send_all(argv[2], atoi(argv[3]), atoi(argv[4]), atof(argv[6]));
    } else if (argc == 6 && !strcmp(argv[1], "drain")) {
        load(argv[3]);
        if (each != LENGTH)
            fail("not ACKs with a HASH of 32 octets and an IPv4 ID");
        drain(argv[2], argv[4], argv[5]);
    } else {
        fprintf(stderr, "usage: ack send ADDRESS PORT FROM FILE RATE | drain ADDRESS FILE SPI KEY\n");
        return 2;
    }
    return 0;
}
