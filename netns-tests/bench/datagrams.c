/* UDP at a wanted rate, and its count at the other end, for the benchmark (bench/udp.py).
 *
 *   datagrams receive ADDRESS PORT SIZE          until stdin ends; prints "ready", then a report
 *   datagrams send ADDRESS PORT SIZE RATE SECONDS
 *
 * Traffic of many users rather than a train: FLOWS sockets, runs of one to RUN_MAX datagrams from
 * one of them at random, random pauses of PAUSE_NS on average, and no UDP GSO. Batches of system
 * calls (sendmmsg, recvmmsg) and sleeping instead of spinning leave the CPU to what is measured.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { FLOWS = 8, RUN_MAX = 8, BATCH = 64, SIZE_MAX_BYTES = 2048, BUFFER = 4 << 20 };
static const double PAUSE_NS = 100e3, LATE_MAX_NS = 5e6;

static void fail(const char *what) { perror(what); exit(1); }

static double now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static struct sockaddr_in target(char **arguments) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(arguments[1]))};
    if (inet_pton(AF_INET, arguments[0], &address.sin_addr) != 1) {
        fprintf(stderr, "not an IPv4 address: %s\n", arguments[0]);
        exit(2);
    }
    return address;
}

static int udp_socket(void) {
    int bytes = BUFFER, sock = socket(AF_INET, SOCK_DGRAM, 0);
    if (sock < 0) fail("socket");
    setsockopt(sock, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes);
    return sock;
}

/* Datagrams of the wanted size, the count and the time from the first to the last of them. */
static int receive_all(char **arguments) {
    static char data[BATCH][SIZE_MAX_BYTES];
    struct mmsghdr messages[BATCH] = {0};
    struct iovec slices[BATCH];
    struct sockaddr_in address = target(arguments);
    unsigned size = atoi(arguments[2]);
    long received = 0;
    double first = 0, last = 0;
    int sock = udp_socket();
    if (bind(sock, (struct sockaddr *)&address, sizeof address)) fail("bind");
    for (int i = 0; i < BATCH; i++) {
        slices[i] = (struct iovec){data[i], SIZE_MAX_BYTES};
        messages[i].msg_hdr.msg_iov = &slices[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    puts("ready");
    fflush(stdout);
    struct pollfd events[2] = {{.fd = sock, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
    while (poll(events, 2, -1) >= 0 || errno == EINTR) {
        int count = recvmmsg(sock, messages, BATCH, MSG_DONTWAIT, NULL);
        for (int i = 0; i < count; i++) received += messages[i].msg_len == size;
        if (count > 0) {
            last = now_ns();
            if (!first) first = last;
        } else if (events[1].revents) {
            break;
        }
    }
    printf("{\"received\": %ld, \"seconds\": %.6f}\n", received, (last - first) / 1e9);
    return 0;
}

/* One run of datagrams from one socket; how many the kernel took. */
static int send_run(int sock, struct mmsghdr *messages, int wanted) {
    int sent = sendmmsg(sock, messages, wanted, 0);
    if (sent < 0 && errno != ENOBUFS && errno != EAGAIN && errno != ECONNREFUSED) fail("sendmmsg");
    return sent < 0 ? 0 : sent;
}

static void pause_until(double when_ns) {
    struct timespec t = {(time_t)(when_ns / 1e9), (long)fmod(when_ns, 1e9)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

static int send_all(char **arguments) {
    static char data[SIZE_MAX_BYTES];
    struct mmsghdr messages[RUN_MAX] = {0};
    struct sockaddr_in address = target(arguments);
    struct iovec slice = {data, atoi(arguments[2])};
    double per_ns = atof(arguments[3]) / 1e9, length_ns = atof(arguments[4]) * 1e9;
    int socks[FLOWS];
    long sent = 0, refused = 0;
    memset(data, 0x5a, sizeof data);
    for (int i = 0; i < FLOWS; i++) {
        socks[i] = udp_socket();
        if (connect(socks[i], (struct sockaddr *)&address, sizeof address)) fail("connect");
    }
    for (int i = 0; i < RUN_MAX; i++) {
        messages[i].msg_hdr.msg_iov = &slice;
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    prctl(PR_SET_TIMERSLACK, 1000);
    srandom(7);
    double start = now_ns(), begun = start, now = start;
    for (; now - begun < length_ns; now = now_ns()) {
        /* Who is too late does not make up for it: a burst is not what was asked for. */
        double late = now - start - (sent + refused) / per_ns;
        if (late > LATE_MAX_NS) start += late - LATE_MAX_NS;
        long due = (long)((now - start) * per_ns) - sent - refused;
        while (due > 0) {
            int wanted = 1 + random() % RUN_MAX;
            if (wanted > due) wanted = due;
            int taken = send_run(socks[random() % FLOWS], messages, wanted);
            sent += taken;
            refused += wanted - taken;
            due -= wanted;
        }
        pause_until(now - PAUSE_NS * log((random() + 1.0) / (RAND_MAX + 1.0)));
    }
    printf("{\"sent\": %ld, \"refused\": %ld, \"seconds\": %.6f}\n",
           sent, refused, (now - begun) / 1e9);
    return 0;
}

int main(int count, char **arguments) {
    if (count >= 5 && atoi(arguments[4]) > SIZE_MAX_BYTES) return 2;
    if (count == 5 && !strcmp(arguments[1], "receive")) return receive_all(arguments + 2);
    if (count == 7 && !strcmp(arguments[1], "send")) return send_all(arguments + 2);
    fprintf(stderr, "usage: datagrams receive ADDRESS PORT SIZE\n"
                    "       datagrams send ADDRESS PORT SIZE RATE SECONDS\n");
    return 2;
}
