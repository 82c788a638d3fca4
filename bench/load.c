/* The load generator: many connections to one echo server, each of which sends a message, compares what comes back, and
 * sends the next. One process, one thread, one edge-triggered epoll; a message costs one recv, one send and one look at
 * the clock, so that it takes no more of its CPU than the fastest server takes of the other one.
 *
 *     load ping  --port N [--connections C] [--size BYTES] [--seconds S | --messages M] [--warmup M] [--sleep]
 *     load storm --port N [--connections C] [--size BYTES] [--in-flight W]
 *     load idle  --port N --steps 1000,2000 [--size BYTES] [--in-flight W]
 *     load percentiles < numbers
 *
 * Whoever runs it reads lines of JSON from it and answers with a line, or ends its input, which ends it:
 *
 *     ping   "ready" when all are connected and warm; a line starts it; "result" when the last echo is back
 *     storm  "ready"; a line starts it: connect them all, a message each; "result"
 *     idle   "ready"; a line each for the next step: that many are open and have had one echo; "step"
 *
 * "cpu_s" of a result is what its work took, without the waiting, which it does awake unless told to --sleep.
 *
 * Afterwards connections stay open until a line or the end of input, and are then reset, so that no port waits in
 * TIME_WAIT. An "error" is final, exit status 1: wrong-bytes, closed, reset, refused, timeout, own.
 *
 * All messages are slices of one random pool, each connection at another place in it, so that bytes of another message
 * or another connection are seen to be wrong.
 */
#define _GNU_SOURCE
#include "histogram.h"
#include "load_options.h"
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

enum { EVENTS_MAX = 512, PLACES = 4096, BURST = 32, SOURCES = 16, SECOND_MS = 1000 };

struct conn {
    int fd;
    unsigned place;          /* Where in the pool its message begins. */
    size_t sent, received;   /* Of that message. */
    uint64_t began_ns;       /* When it was sent, or, for the first, when the connection was begun. */
    uint64_t left;           /* How many more to send. */
};

static struct conn *conns;
static char *pool, *buffer;
static int poller;
static long opened, busy; /* Connections so far; those that wait for an echo. */
static uint64_t echoed, end_ns, now_ns, waited_cpu_ns;
static struct histogram latency;

static uint64_t clock_ns(clockid_t which)
{
    struct timespec now;
    clock_gettime(which, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

__attribute__((noreturn, format(printf, 2, 3))) static void fail(const char *kind, const char *format, ...)
{
    char detail[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(detail, sizeof detail, format, arguments);
    va_end(arguments);
    printf("{\"event\": \"error\", \"kind\": \"%s\", \"detail\": \"%s\"}\n", kind, detail);
    fflush(stdout);
    _exit(1);
}

__attribute__((noreturn)) static void fail_of(const struct conn *c, int error)
{
    const char *kind = error == ECONNREFUSED ? "refused"
                       : error == ECONNRESET || error == EPIPE ? "reset"
                       : "own";
    fail(kind, "connection %ld: %s", (long)(c - conns), strerror(error));
}

/* Wait for whoever runs us; false when nobody does any more. */
static bool told(void)
{
    char byte = 0;
    ssize_t n;
    do
        n = read(STDIN_FILENO, &byte, 1);
    while (n == 1 && byte != '\n');
    return n == 1;
}

static void push(struct conn *c)
{
    while (c->sent < options.size) {
        ssize_t n = send(c->fd, pool + c->place + c->sent, options.size - c->sent, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EAGAIN || errno == ENOTCONN || errno == EINPROGRESS)
                return; /* An edge will tell when there is room. */
            fail_of(c, errno);
        }
        c->sent += (size_t)n;
    }
}

static void send_next(struct conn *c)
{
    c->place = (c->place + 61) % PLACES;
    c->sent = c->received = 0;
    c->left--;
    push(c);
}

static void message_done(struct conn *c)
{
    now_ns = clock_ns(CLOCK_MONOTONIC);
    histogram_record(&latency, now_ns - c->began_ns);
    echoed++;
    c->began_ns = now_ns;
    if (c->left && now_ns < end_ns)
        send_next(c);
    else
        busy--;
}

static void receive(struct conn *c, bool to_the_end)
{
    for (;;) {
        /* One byte more than is due: a server that says too much is wrong as well. */
        size_t due = options.size - c->received;
        ssize_t n = recv(c->fd, buffer, due + 1, 0);
        if (n < 0) {
            if (errno == EAGAIN)
                return;
            fail_of(c, errno);
        }
        if (n == 0)
            fail("closed", "the server closed connection %ld after %zu of %zu bytes", (long)(c - conns), c->received,
                 options.size);
        if ((size_t)n > due || memcmp(buffer, pool + c->place + c->received, (size_t)n))
            fail("wrong-bytes", "connection %ld: %zd bytes came where %zu were due, or others than were sent",
                 (long)(c - conns), n, due);
        c->received += (size_t)n;
        bool drained = (size_t)n < due + 1;
        if (c->received == options.size)
            message_done(c);
        if (drained && !to_the_end)
            return;
    }
}

static void serve(struct conn *c, uint32_t events)
{
    if (c->sent < options.size)
        push(c);
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        receive(c, events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR));
}

/* Wait for events, awake: a generator that sleeps has to be woken by the server, which would pay for that the more
 * often the faster it is. With --sleep it sleeps all the same, as it must when both have one CPU. */
static int wait_awake(struct epoll_event *events)
{
    uint64_t began_ns = clock_ns(CLOCK_MONOTONIC), cpu_began_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    int count;
    do {
        count = epoll_wait(poller, events, EVENTS_MAX, options.sleep ? SECOND_MS : 0);
        if (count <= 0 && (double)(clock_ns(CLOCK_MONOTONIC) - began_ns) > options.timeout_s * 1e9)
            fail("timeout", "nothing came for %g s, and %ld connections wait", options.timeout_s, busy);
    } while (count <= 0);
    waited_cpu_ns += clock_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu_began_ns;
    return count;
}

/* Serve what there is, after waiting for something if need be. */
static void turn(bool wait)
{
    static struct epoll_event events[EVENTS_MAX];
    int count = epoll_wait(poller, events, EVENTS_MAX, 0);
    if (count == 0 && wait)
        count = wait_awake(events);
    for (int i = 0; i < count; i++)
        serve(events[i].data.ptr, events[i].events);
}

/* Connect, and send the first of `messages`. The source address changes with each: one has 28,000 ports only. */
static void open_connection(uint64_t messages)
{
    static const int on = 1;
    struct conn *c = &conns[opened];
    struct sockaddr_in source = {.sin_family = AF_INET}, server = {.sin_family = AF_INET};
    source.sin_addr.s_addr = htonl(INADDR_LOOPBACK + (uint32_t)(opened % SOURCES));
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    server.sin_port = htons((uint16_t)options.port);
    c->began_ns = clock_ns(CLOCK_MONOTONIC);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        fail("own", "connection %ld: %s", opened, strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    if (bind(c->fd, (struct sockaddr *)&source, sizeof source) < 0)
        fail("own", "bind of connection %ld: %s", opened, strerror(errno));
    if (connect(c->fd, (struct sockaddr *)&server, sizeof server) < 0 && errno != EINPROGRESS)
        fail_of(c, errno);
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event) < 0)
        fail("own", "epoll_ctl: %s", strerror(errno));
    c->place = (unsigned)(opened * 127) % PLACES;
    c->left = messages;
    opened++;
    busy++;
    send_next(c);
}

/* Bring the connections to `total`, with `messages` each, and no more than `in_flight` without their echo: more would
 * overflow the server's accept queue, and a connection that does not fit tries again after a second. */
static void open_up_to(long total, uint64_t messages)
{
    end_ns = UINT64_MAX;
    while (opened < total || busy) {
        for (int i = 0; i < BURST && opened < total && busy < options.in_flight; i++)
            open_connection(messages);
        turn(opened == total || busy >= options.in_flight);
    }
}

static void print_result(uint64_t began_ns, uint64_t cpu_began_ns)
{
    double seconds = (double)(now_ns - began_ns) / 1e9;
    double cpu_s = (double)(clock_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu_began_ns - waited_cpu_ns) / 1e9;
    printf("{\"event\": \"result\", \"connections\": %ld, \"size_bytes\": %zu, \"messages\": %llu, \"seconds\": %.9f, "
           "\"cpu_s\": %.9f, \"p50_us\": %.3f, \"p99_us\": %.3f, \"p999_us\": %.3f, \"max_us\": %.3f}\n",
           opened, options.size, (unsigned long long)echoed, seconds, cpu_s,
           (double)histogram_percentile(&latency, 0.5) / 1e3, (double)histogram_percentile(&latency, 0.99) / 1e3,
           (double)histogram_percentile(&latency, 0.999) / 1e3, (double)latency.max / 1e3);
    fflush(stdout);
}

static void ready(void)
{
    printf("{\"event\": \"ready\"}\n");
    fflush(stdout);
    if (!told())
        _exit(0);
}

static void ping(void)
{
    open_up_to(options.connections, options.warmup);
    ready();
    memset(&latency, 0, sizeof latency);
    echoed = waited_cpu_ns = 0;
    uint64_t cpu_began_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID), began_ns = clock_ns(CLOCK_MONOTONIC);
    end_ns = options.messages ? UINT64_MAX : began_ns + (uint64_t)(options.seconds * 1e9);
    for (long i = 0; i < opened; i++) {
        conns[i].left = options.messages ? options.messages : UINT64_MAX;
        conns[i].began_ns = clock_ns(CLOCK_MONOTONIC);
        busy++;
        send_next(&conns[i]);
    }
    while (busy)
        turn(true);
    print_result(began_ns, cpu_began_ns);
}

static void storm(void)
{
    ready();
    uint64_t cpu_began_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID), began_ns = clock_ns(CLOCK_MONOTONIC);
    open_up_to(options.connections, 1);
    print_result(began_ns, cpu_began_ns);
}

static void idle(void)
{
    ready();
    for (int i = 0; i < options.steps_count; i++) {
        if (i && !told())
            _exit(0);
        open_up_to(options.steps[i], 1);
        printf("{\"event\": \"step\", \"connections\": %ld}\n", opened);
        fflush(stdout);
    }
}

static void percentiles(void)
{
    unsigned long long value;
    while (scanf("%llu", &value) == 1)
        histogram_record(&latency, value);
    printf("{\"count\": %llu, \"p50\": %llu, \"p90\": %llu, \"p99\": %llu, \"p999\": %llu, \"max\": %llu}\n",
           (unsigned long long)latency.count, (unsigned long long)histogram_percentile(&latency, 0.5),
           (unsigned long long)histogram_percentile(&latency, 0.9),
           (unsigned long long)histogram_percentile(&latency, 0.99),
           (unsigned long long)histogram_percentile(&latency, 0.999), (unsigned long long)latency.max);
}

static void prepare(void)
{
    struct rlimit limit;
    rlim_t needed = (rlim_t)options.connections + 16;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < needed) {
        limit.rlim_cur = needed;
        if (limit.rlim_max < needed)
            limit.rlim_max = needed; /* Which only root may. */
        if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
            fail("own", "%ld connections are more than the limit of open files allows", options.connections);
    }
    conns = calloc((size_t)options.connections, sizeof *conns);
    pool = malloc(options.size + PLACES);
    buffer = malloc(options.size + 1);
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (!conns || !pool || !buffer || poller < 0)
        fail("own", "%s", strerror(errno));
    uint64_t state = 88172645463325252u; /* xorshift64: any bytes will do that do not repeat. */
    for (size_t i = 0; i < options.size + PLACES; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        pool[i] = (char)state;
    }
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
    if (strcmp(mode, "percentiles") == 0) {
        percentiles();
        return 0;
    }
    void (*run)(void) = strcmp(mode, "ping") == 0    ? ping
                        : strcmp(mode, "storm") == 0 ? storm
                        : strcmp(mode, "idle") == 0  ? idle
                                                     : NULL;
    if (!run)
        usage("the first argument is ping, storm, idle or percentiles");
    parse(argc - 1, argv + 1);
    prepare();
    run();
    told();
    static const struct linger reset = {.l_onoff = 1, .l_linger = 0};
    for (long i = 0; i < opened; i++)
        setsockopt(conns[i].fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset); /* The end of the process closes. */
    return 0;
}
