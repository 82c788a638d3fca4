/* Latencies in a log-linear histogram, as HdrHistogram keeps them: a bucket is never wider than 1/128 of what it holds,
 * whatever the size, and recording is a few instructions. Percentiles are the upper end of the bucket they fall into,
 * so they may be 0.8 % too large and are never too small.
 */
#ifndef BENCH_HISTOGRAM_H
#define BENCH_HISTOGRAM_H

#include <stdint.h>

enum { HISTOGRAM_BITS = 7, HISTOGRAM_STEPS = 1 << HISTOGRAM_BITS, HISTOGRAM_BUCKETS = 58 * HISTOGRAM_STEPS };

struct histogram {
    uint64_t count, max;
    uint64_t buckets[HISTOGRAM_BUCKETS];
};

static inline void histogram_record(struct histogram *h, uint64_t value)
{
    /* Below 256 a bucket for each value; above, 128 for each doubling. */
    unsigned shift = value < 2 * HISTOGRAM_STEPS ? 0 : 63 - HISTOGRAM_BITS - (unsigned)__builtin_clzll(value);
    h->buckets[shift * HISTOGRAM_STEPS + (value >> shift)]++;
    h->count++;
    if (value > h->max)
        h->max = value;
}

/* The least value that `fraction` of all are not above; 0 when there are none. */
static uint64_t histogram_percentile(const struct histogram *h, double fraction)
{
    uint64_t wanted = (uint64_t)(fraction * (double)h->count), seen = 0;
    if ((double)wanted < fraction * (double)h->count || wanted == 0)
        wanted++;
    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
        seen += h->buckets[i];
        if (seen >= wanted && h->buckets[i]) {
            unsigned shift = i < 2 * HISTOGRAM_STEPS ? 0 : i / HISTOGRAM_STEPS - 1;
            uint64_t low = (uint64_t)(i - shift * HISTOGRAM_STEPS) << shift;
            uint64_t high = low + ((uint64_t)1 << shift) - 1;
            return high < h->max ? high : h->max;
        }
    }
    return 0;
}

#endif
