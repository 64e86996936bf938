/* One token a row from softmax(logits / temperature). The likeliest comes first on the number line, the others in order. */
#include "vec.h"

enum { CHUNK = 64 }; /* tokens summed at a time: the drawn one is first sought among chunks, then inside one */

/* The token at `left` on the line of the others than `best`; sums are those of chunks, without `best`. */
static int64_t seek(const float *e, const float *sums, int64_t V, int64_t best, float left) {
    int64_t chunks = (V + CHUNK - 1) / CHUNK, c = 0, last = -1;
    while (c + 1 < chunks && left >= sums[c]) left -= sums[c++];
    for (int64_t at = c * CHUNK; at < V && at < (c + 1) * CHUNK; at++) {
        if (at == best || !(e[at] > 0)) continue;
        if (left < e[at]) return at;
        left -= e[at];
        last = at;
    }
    if (last >= 0) return last; /* rounding left a little beyond the last token with any mass */
    for (int64_t at = c * CHUNK; at-- > 0;)
        if (at != best && e[at] > 0) return at;
    return best;
}

/* logits [N][V], temperature and place [N]; chosen [N]; logprobs [N] at the temperature, at 1 where that is 0. */
int64_t draw_tokens(const float *logits, const float *temperature, const float *place, int64_t *chosen, float *logprobs,
                    int64_t N, int64_t V) {
    int64_t chunks = (V + CHUNK - 1) / CHUNK;
    float *e = scratch_of_thread(chunks * CHUNK + chunks);
    if (!e) return -1;
    float *sums = e + chunks * CHUNK;
    for (int64_t n = 0; n < N; n++) {
        const float *x = logits + n * V;
        float scale = temperature[n] > 0 ? 1 / temperature[n] : 1, total = 0;
        vf top = splat(-INFINITY);
        for (int64_t k = 0; k < V; k += W) {
            vf v = load_n(x, k, V - k, 0);
            top = vmax(top, V - k < W ? choose(LANES < (int32_t)(V - k), v, splat(-INFINITY)) : v);
        }
        float max = hmax(top);
        int64_t best = 0;
        while (best + 1 < V && !(x[best] == max)) best++;
        for (int64_t c = 0; c < chunks; c++) {
            vf sum = splat(0);
            for (int64_t k = c * CHUNK; k < (c + 1) * CHUNK; k += W) {
                vf v = splat(0);
                if (k < V) v = vexp((load_n(x, k, V - k, 0) - max) * scale);
                if (V - k < W) v = choose(LANES < (int32_t)(V - k), v, splat(0));
                store(e, k, v, 0);
                sum += choose(LANES == (int32_t)(best - k), splat(0), v);
            }
            sums[c] = hsum(sum);
            total += sums[c];
        }
        float left = place[n] * (e[best] + total) - e[best];
        chosen[n] = temperature[n] > 0 && left >= 0 && total > 0 ? seek(e, sums, V, best, left) : best;
        logprobs[n] = (x[chosen[n]] - max) * scale - logf(e[best] + total);
    }
    return 0;
}
