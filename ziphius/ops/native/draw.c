/* One token a row from softmax(logits / temperature): greedy where the temperature is 0. */
#include "vec.h"

enum { CHUNK = 64 }; /* tokens summed at a time: the drawn one is first sought among chunks, then inside one */

/* logits [N][V] fp32; place [N] in [0, 1). chosen [N]; logprobs [N] at the temperature (at 1 for greedy). */
int64_t draw_tokens(const float *logits, const float *place, int64_t *chosen, float *logprobs, int64_t N, int64_t V,
                    float temperature) {
    int64_t chunks = (V + CHUNK - 1) / CHUNK;
    float scale = temperature > 0 ? 1 / temperature : 1;
    float *e = scratch_of_thread(round_up(V, CHUNK) + chunks);
    if (!e) return -1;
    float *sums = e + round_up(V, CHUNK);
    for (int64_t n = 0; n < N; n++) {
        const float *x = logits + n * V;
        vf top = splat(-INFINITY);
        for (int64_t k = 0; k < V; k += W) {
            vf v = load_n(x, k, V - k, 0);
            top = vmax(top, V - k < W ? choose(LANES < (int32_t)(V - k), v, splat(-INFINITY)) : v);
        }
        float max = hmax(top), total = 0;
        for (int64_t c = 0; c < chunks; c++) {
            vf sum = splat(0);
            for (int64_t k = c * CHUNK; k < (c + 1) * CHUNK; k += W) {
                vf v = splat(0);
                if (k < V) v = vexp((load_n(x, k, V - k, 0) - max) * scale);
                if (V - k < W) v = choose(LANES < (int32_t)(V - k), v, splat(0));
                store(e, k, v, 0);
                sum += v;
            }
            sums[c] = hsum(sum);
            total += sums[c];
        }
        int64_t at = 0;
        if (temperature > 0) {
            float left = place[n] * total;
            int64_t c = 0;
            while (c + 1 < chunks && left >= sums[c]) left -= sums[c++];
            int64_t last = -1; /* rounding may leave a little beyond the last token with any mass */
            for (at = c * CHUNK; at < V && at < (c + 1) * CHUNK; at++) {
                if (e[at] > 0) last = at;
                if (left < e[at]) break;
                left -= e[at];
            }
            if (at == V || at == (c + 1) * CHUNK) at = last;
            for (int64_t k = V; at < 0 && k-- > 0;) at = e[k] > 0 ? k : -1;
            if (at < 0) at = 0; /* not a number: nothing can be drawn */
        } else {
            while (at + 1 < V && !(x[at] == max)) at++;
        }
        chosen[n] = at;
        logprobs[n] = (x[at] - max) * scale - logf(total);
    }
    return 0;
}
