/* The load generator's command line. What the options mean stands on top of load.c. */
#ifndef BENCH_LOAD_OPTIONS_H
#define BENCH_LOAD_OPTIONS_H

#include <getopt.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STEPS_MAX = 64 };

static struct options {
    int port, in_flight, steps_count;
    long connections, steps[STEPS_MAX];
    size_t size;
    double seconds, timeout_s;
    uint64_t messages, warmup;
    bool sleep;
} options = {.connections = 200, .size = 64, .seconds = 1, .warmup = 20, .in_flight = 1024, .timeout_s = 10};

static void usage(const char *what)
{
    fprintf(stderr, "load: %s; see the comment on top of bench/load.c\n", what);
    exit(2);
}

static double number(const char *text, double least, double most)
{
    char *end;
    double value = strtod(text, &end);
    if (*end || end == text || !(value >= least && value <= most))
        usage("a number is wrong or out of range");
    return value;
}

static void parse_steps(char *text)
{
    for (char *step = strtok(text, ","); step; step = strtok(NULL, ",")) {
        if (options.steps_count == STEPS_MAX)
            usage("too many steps");
        options.connections = options.steps[options.steps_count++] = (long)number(step, 1, 1e6);
    }
}

static void parse(int argc, char **argv)
{
    static const struct option names[] = {
        {"port", 1, 0, 'p'},     {"connections", 1, 0, 'c'}, {"size", 1, 0, 's'},   {"seconds", 1, 0, 't'},
        {"messages", 1, 0, 'm'}, {"warmup", 1, 0, 'w'},      {"steps", 1, 0, 'n'},  {"in-flight", 1, 0, 'f'},
        {"timeout", 1, 0, 'T'},  {"sleep", 0, 0, 'S'},       {0, 0, 0, 0},
    };
    for (int which; (which = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        switch (which) {
        case 'p': options.port = (int)number(optarg, 1, 65535); break;
        case 'c': options.connections = (long)number(optarg, 1, 1e6); break;
        case 's': options.size = (size_t)number(optarg, 1, 1e8); break;
        case 't': options.seconds = number(optarg, 0.001, 1e5); break;
        case 'm': options.messages = (uint64_t)number(optarg, 1, 1e15); break;
        case 'w': options.warmup = (uint64_t)number(optarg, 1, 1e9); break;
        case 'n': parse_steps(optarg); break;
        case 'f': options.in_flight = (int)number(optarg, 1, 1e6); break;
        case 'T': options.timeout_s = number(optarg, 0.1, 1e5); break;
        case 'S': options.sleep = true; break;
        default: usage("unknown option");
        }
    }
    if (!options.port)
        usage("--port is missing");
    if (strcmp(argv[0], "idle") == 0 && !options.steps_count)
        usage("--steps is missing");
    for (int i = 1; i < options.steps_count; i++)
        if (options.steps[i] < options.steps[i - 1])
            usage("each of the --steps has to be at least the one before");
}

#endif
