/* One datagram to many addresses of the loopback network, with sendmmsg(2) and nothing else.
 *
 * The socket is in an epoll set, as a daemon's is: it hears members, too, and the kernel looks at
 * that set whenever a datagram has left.
 *
 *   fanout FIRST PORT ADDRESSES OCTETS TIMES   FIRST: an IPv4 address, the others follow it
 *
 * Prints the median of the processor's seconds for one time.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "median.h"

#define BATCH 1024

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

int main(int argc, char **argv)
{
    if (argc != 6) {
        fprintf(stderr, "fanout: usage: fanout FIRST PORT ADDRESSES OCTETS TIMES\n");
        return 1;
    }
    unsigned count = (unsigned)atoi(argv[3]), times = (unsigned)atoi(argv[5]);
    size_t octets = strtoul(argv[4], NULL, 10);
    struct sockaddr_in *to = calloc(count, sizeof *to), from = {.sin_family = AF_INET};
    static struct mmsghdr messages[BATCH];
    char *datagram = calloc(1, octets);
    struct iovec iovec = {.iov_base = datagram, .iov_len = octets};
    double *taken = malloc(times * sizeof *taken);
    int sock = socket(AF_INET, SOCK_DGRAM, 0);
    if (!to || !datagram || !taken || sock < 0)
        fail("fanout");
    from.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(sock, (struct sockaddr *)&from, sizeof from))
        fail("bind");
    struct epoll_event readable = {.events = EPOLLIN};
    if (epoll_ctl(epoll_create1(0), EPOLL_CTL_ADD, sock, &readable))
        fail("epoll_ctl");
    for (unsigned i = 0; i < count; i++) {
        to[i].sin_family = AF_INET;
        to[i].sin_port = htons((unsigned short)atoi(argv[2]));
        to[i].sin_addr.s_addr = htonl(ntohl(inet_addr(argv[1])) + i);
    }

    for (unsigned time = 0; time < times; time++) {
        double began = now();

        for (unsigned done = 0; done < count;) {
            unsigned batch = count - done < BATCH ? count - done : BATCH;

            for (unsigned i = 0; i < batch; i++) {
                messages[i].msg_hdr.msg_name = to + done + i;
                messages[i].msg_hdr.msg_namelen = sizeof *to;
                messages[i].msg_hdr.msg_iov = &iovec;
                messages[i].msg_hdr.msg_iovlen = 1;
            }
            int sent = sendmmsg(sock, messages, batch, 0);
            if (sent < 0)
                fail("sendmmsg");
            done += (unsigned)sent;
        }
        taken[time] = now() - began;
    }
    qsort(taken, times, sizeof *taken, rising);
    printf("%.9f\n", taken[times / 2]);
    return 0;
}
