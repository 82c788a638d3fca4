/* The bar: the echo server that a C programmer writes for one thread and one epoll, and nothing beyond it.
 *
 * A connection is registered once, edge-triggered, for everything. Each edge is answered with one recv into one static
 * buffer and one send; a short recv proves the kernel empty and spares the second. Only what the kernel does not take
 * at once is copied, and until it has gone the connection is not read: that is what makes it correct, and costs a test
 * of a pointer. It has no metrics, limits or deadlines.
 *
 * Prints "listening 127.0.0.1:PORT" and serves until standard input ends.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BUFFER_BYTES = 65536, EVENTS_MAX = 512, BACKLOG = 4096, ACCEPTS_MAX = 64 };

struct rest { /* What the kernel has not taken yet. */
    size_t length, sent;
    char bytes[];
};

static char buffer[BUFFER_BYTES];
static struct rest **rests; /* By descriptor. */
static int poller;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void end(int fd)
{
    free(rests[fd]);
    rests[fd] = NULL;
    close(fd);
}

static void keep(int fd, const char *bytes, size_t length)
{
    struct rest *rest = malloc(sizeof *rest + length);
    if (!rest)
        fail("malloc");
    rest->length = length;
    rest->sent = 0;
    memcpy(rest->bytes, bytes, length);
    rests[fd] = rest;
}

/* 1: all of it has gone; 0: the kernel is full; -1: the connection has ended. */
static int flush(int fd)
{
    struct rest *rest = rests[fd];
    while (rest->sent < rest->length) {
        ssize_t n = send(fd, rest->bytes + rest->sent, rest->length - rest->sent, MSG_NOSIGNAL);
        if (n < 0)
            return errno == EAGAIN ? 0 : -1;
        rest->sent += (size_t)n;
    }
    free(rest);
    rests[fd] = NULL;
    return 1;
}

static void serve(int fd, uint32_t events)
{
    if (__builtin_expect(rests[fd] != NULL, 0)) {
        int flushed = flush(fd);
        if (flushed < 0)
            end(fd);
        if (flushed <= 0)
            return;
    } else if (!(events & ~(uint32_t)EPOLLOUT)) {
        return; /* The edge that comes with the registration. */
    }
    for (;;) {
        ssize_t n = recv(fd, buffer, sizeof buffer, 0);
        if (__builtin_expect(n <= 0, 0)) {
            if (n == 0 || errno != EAGAIN)
                end(fd);
            return;
        }
        ssize_t sent = send(fd, buffer, (size_t)n, MSG_NOSIGNAL);
        if (__builtin_expect(sent != n, 0)) {
            if (sent < 0 && errno != EAGAIN) {
                end(fd);
                return;
            }
            if (sent < 0)
                sent = 0;
            keep(fd, buffer + sent, (size_t)(n - sent));
            int flushed = flush(fd); /* Its edge may have come before there was anything to flush. */
            if (flushed < 0)
                end(fd);
            if (flushed <= 0)
                return;
            continue;
        }
        /* With the end of the stream announced, read until it is reached. */
        if (n < (ssize_t)sizeof buffer && !(events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)))
            return;
    }
}

static void welcome(int listener)
{
    static const int on = 1;
    for (int i = 0; i < ACCEPTS_MAX; i++) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return; /* EAGAIN; or this one has gone; or no descriptor is free: what waits is told of again. */
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.fd = fd};
        if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) < 0)
            fail("epoll_ctl");
    }
}

static int listen_on_free_port(void)
{
    static const int on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) < 0 ||
        listen(listener, BACKLOG) < 0 || getsockname(listener, (struct sockaddr *)&address, &length) < 0)
        fail("listen");
    printf("listening 127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

int main(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        fail("getrlimit");
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    rests = calloc(limit.rlim_cur, sizeof *rests);
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (!rests || poller < 0)
        fail("start");
    int listener = listen_on_free_port();
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    event.events = EPOLLIN;
    event.data.fd = STDIN_FILENO;
    if (epoll_ctl(poller, EPOLL_CTL_ADD, STDIN_FILENO, &event) < 0)
        fail("standard input has to be a pipe");
    for (;;) {
        static struct epoll_event events[EVENTS_MAX];
        int count = epoll_wait(poller, events, EVENTS_MAX, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == listener)
                welcome(listener);
            else if (fd == STDIN_FILENO)
                return 0;
            else
                serve(fd, events[i].events);
        }
    }
}
