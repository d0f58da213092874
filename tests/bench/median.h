/* The processor's seconds so far, and an order of them for qsort(3). Whoever includes this has a
 * `fail` that says what went wrong and ends the program. */
#include <time.h>

static void fail(const char *what);

static double now(void)
{
    struct timespec at;

    if (clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &at))
        fail("clock_gettime");
    return (double)at.tv_sec + 1e-9 * (double)at.tv_nsec;
}

static int rising(const void *one, const void *other)
{
    double a = *(const double *)one, b = *(const double *)other;

    return (a > b) - (a < b);
}
