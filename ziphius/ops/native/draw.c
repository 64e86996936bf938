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

/* The mass of all but `best`, chunk by chunk and in all; what is below `floor` becomes zero. */
static float sum_up(float *e, float *sums, int64_t chunks, int64_t best, float floor) {
    float total = 0;
    for (int64_t c = 0; c < chunks; c++) {
        vf sum = splat(0);
        for (int64_t k = c * CHUNK; k < (c + 1) * CHUNK; k += W) {
            vf v = load(e, k, 0);
            v = choose(v < floor, splat(0), v);
            store(e, k, v, 0);
            sum += choose(LANES == (int32_t)(best - k), splat(0), v);
        }
        sums[c] = hsum(sum);
        total += sums[c];
    }
    return total;
}

/* How many of e[size] are at least `from`, and their sum. */
static void above(const float *e, int64_t size, float from, float *count, float *mass) {
    vf many = splat(0), sum = splat(0);
    for (int64_t k = 0; k < size; k += W) {
        vf v = load(e, k, 0);
        vi kept = v >= from;
        many += choose(kept, splat(1), splat(0));
        sum += choose(kept, v, splat(0));
    }
    *count = hsum(many);
    *mass = hsum(sum);
}

/* The largest number in [low, 1] such that at least `tokens` of e, or a mass of `goal`, are not below it, where `low` is
 * one: the places of non-negative floats in order are their bits'. */
static float highest(const float *e, int64_t size, float low, float tokens, float goal) {
    uint32_t lower, upper;
    float one = 1, count, mass, middle;
    memcpy(&lower, &low, sizeof low);
    memcpy(&upper, &one, sizeof one);
    for (upper++; upper - lower > 1;) {
        uint32_t bits = lower + (upper - lower) / 2;
        memcpy(&middle, &bits, sizeof middle);
        above(e, size, middle, &count, &mass);
        if (count >= tokens && mass >= goal)
            lower = bits;
        else
            upper = bits;
    }
    memcpy(&low, &lower, sizeof low);
    return low;
}

/* Below which shares e (of the likeliest, which is 1) are cut; see ziphius.ops.cut. */
static float floor_of(const float *e, int64_t size, int64_t V, float mass, int64_t top_k, float top_p, float min_p) {
    float floor = 0, count, more;
    if (top_k > 0 && top_k < V) {
        floor = highest(e, size, 0, (float)top_k, 0);
        above(e, size, nextafterf(floor, 2), &count, &more);
        mass = more + ((float)top_k - count) * floor;
    }
    if (top_p < 1) floor = highest(e, size, floor, 0, top_p * mass);
    return floor > min_p ? floor : min_p;
}

/* logits [N][V], temperature, place and the cuts [N], which may be null together; chosen [N]; logprobs [N] before the cuts
 * at the temperature, at 1 where that is 0. */
int64_t draw_tokens(const float *logits, const float *temperature, const float *place, const int64_t *top_k,
                    const float *top_p, const float *min_p, int64_t *chosen, float *logprobs, int64_t N, int64_t V) {
    int64_t chunks = (V + CHUNK - 1) / CHUNK;
    float *e = scratch_of_thread(chunks * CHUNK + chunks);
    if (!e) return -1;
    float *sums = e + chunks * CHUNK;
    for (int64_t n = 0; n < N; n++) {
        const float *x = logits + n * V;
        float scale = temperature[n] > 0 ? 1 / temperature[n] : 1, total;
        vf top = splat(-INFINITY);
        for (int64_t k = 0; k < V; k += W) {
            vf v = load_n(x, k, V - k, 0);
            top = vmax(top, V - k < W ? choose(LANES < (int32_t)(V - k), v, splat(-INFINITY)) : v);
        }
        float max = hmax(top);
        int64_t best = 0;
        while (best + 1 < V && !(x[best] == max)) best++;
        for (int64_t k = 0; k < chunks * CHUNK; k += W) {
            vf v = splat(0);
            if (k < V) v = vexp((load_n(x, k, V - k, 0) - max) * scale);
            if (V - k < W) v = choose(LANES < (int32_t)(V - k), v, splat(0));
            store(e, k, v, 0);
        }
        total = sum_up(e, sums, chunks, best, 0);
        float whole = e[best] + total, floor = 0;
        if (top_k && temperature[n] > 0 && whole > 0)
            floor = floor_of(e, chunks * CHUNK, V, whole, top_k[n], top_p[n], min_p[n]);
        if (floor > 0) total = sum_up(e, sums, chunks, best, floor);
        float left = place[n] * (e[best] + total) - e[best];
        chosen[n] = temperature[n] > 0 && left >= 0 && total > 0 ? seek(e, sums, V, best, left) : best;
        logprobs[n] = (x[chosen[n]] - max) * scale - logf(whole);
    }
    return 0;
}
