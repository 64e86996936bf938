/* Moving tokens to their experts' rows and back.
 *
 * Slot n*K + k is token n's k-th choice. Expert e owns the rows e*C .. e*C + C-1; `place` [N*K] gives each slot's row
 * and `slots` [E*C] each row's slot, -1 where the row is padding.
 */
#include "vec.h"

/* Stable counting sort. Returns the capacity C, the largest load rounded up to `step`, or -2 when an index is not
 * in 0..E-1. `slots` has room for E * round_up(N*K, step) entries, `counts` for E. */
int64_t experts_layout(const int64_t *indices, int32_t *place, int32_t *slots, int64_t *counts, int64_t count,
                       int64_t E, int64_t step) {
    memset(counts, 0, (size_t)E * sizeof *counts);
    for (int64_t i = 0; i < count; i++) {
        if (indices[i] < 0 || indices[i] >= E) return -2;
        counts[indices[i]]++;
    }
    int64_t most = 0;
    for (int64_t e = 0; e < E; e++) most = counts[e] > most ? counts[e] : most;
    int64_t capacity = round_up(most, step);
    memset(slots, 0xff, (size_t)(E * capacity) * sizeof *slots);
    for (int64_t e = 0; e < E; e++) counts[e] = e * capacity;
    for (int64_t i = 0; i < count; i++) {
        int64_t row = counts[indices[i]]++;
        place[i] = (int32_t)row;
        slots[row] = (int32_t)i;
    }
    return capacity;
}

/* to[row] = from[token of row], zero on padding. `width` is in bytes. */
int64_t experts_gather(const char *from, const int32_t *slots, char *to, int64_t rows, int64_t K, int64_t width,
                       int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < rows; i++) {
        if (slots[i] < 0)
            memset(to + i * width, 0, (size_t)width);
        else
            memcpy(to + i * width, from + slots[i] / K * width, (size_t)width);
    }
    return 0;
}

/* to[n] = sum over k of from[place[n*K + k]], in that order, in fp32. */
INLINE void sum_rows(const void *from, const int32_t *place, void *to, int64_t N, int64_t K, int64_t D, int threads,
                     int half) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t n = 0; n < N; n++)
        for (int64_t j = 0; j < D; j += W) {
            vf sum = load_n(from, place[n * K] * D + j, D - j, half);
            for (int64_t k = 1; k < K; k++) sum += load_n(from, place[n * K + k] * D + j, D - j, half);
            store_n(to, n * D + j, sum, D - j, half);
        }
}

int64_t experts_sum(const void *from, const int32_t *place, void *to, int64_t N, int64_t K, int64_t D, int threads,
                    int half) {
    if (half)
        sum_rows(from, place, to, N, K, D, threads, 1);
    else
        sum_rows(from, place, to, N, K, D, threads, 0);
    return 0;
}
