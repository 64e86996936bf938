/* The gate after its product: scores, choice and weights of K experts per token, and the balance loss over sequences.
 *
 * N tokens, E experts in G groups, K chosen experts. Everything is fp32: these arrays are small.
 */
#include "vec.h"

enum { SIGMOID = 1, NORMALISE = 2, BY_TWO_BEST = 4 }; /* flags; without SIGMOID, softmax */

/* Position of the largest of n values whose mark is 0, a NaN counting as largest and the first of equals winning. */
INLINE int64_t best(const float *x, const uint8_t *used, int64_t n) {
    int64_t at = -1;
    for (int64_t i = 0; i < n; i++)
        if (!used[i] && (at < 0 || x[i] > x[at] || (x[i] != x[i] && x[at] == x[at]))) at = i;
    return at;
}

/* Mark the experts of all but the `kept` best groups: a group counts as its best expert, or its two best. */
static void leave_groups(const float *rank, uint8_t *used, int64_t E, int64_t G, int64_t kept, int two, float *worth,
                         uint8_t *taken) {
    int64_t size = E / G;
    for (int64_t g = 0; g < G; g++) {
        const float *x = rank + g * size;
        uint8_t *free_ones = used + g * size;
        int64_t first = best(x, free_ones, size);
        worth[g] = x[first];
        if (two) {
            free_ones[first] = 1;
            worth[g] += x[best(x, free_ones, size)];
            free_ones[first] = 0;
        }
        taken[g] = 0;
    }
    for (int64_t i = 0; i < kept; i++) taken[best(worth, taken, G)] = 1;
    for (int64_t e = 0; e < E; e++) used[e] = !taken[e / size];
}

/* bias [E] or null; kept 0 leaves the groups aside. scores [N,E], indices and weights [N,K].
 * The weights are the chosen scores, divided by their sum under NORMALISE, times `factor`. */
int64_t router_forward(const float *logits, const float *bias, float *scores, int64_t *indices, float *weights,
                       int64_t N, int64_t E, int64_t K, int64_t G, int64_t kept, float factor, int flags) {
    float *rank = malloc((size_t)(2 * E) * sizeof *rank);
    uint8_t *used = malloc((size_t)(2 * E));
    int64_t failed = !rank || !used;
    for (int64_t n = 0; n < N && !failed; n++) {
        float *s = scores + n * E, total = 0;
        vf top = splat(-INFINITY);
        if (!(flags & SIGMOID))
            for (int64_t e = 0; e < E; e++) top = vmax(splat(logits[n * E + e]), top);
        for (int64_t e = 0; e < E; e += W) {
            vf x = load_n(logits, n * E + e, E - e, 0);
            store_n(s, e, flags & SIGMOID ? sigmoid(x) : vexp(x - top), E - e, 0);
        }
        if (!(flags & SIGMOID)) {
            for (int64_t e = 0; e < E; e++) total += s[e];
            for (int64_t e = 0; e < E; e++) s[e] /= total;
        }
        for (int64_t e = 0; e < E; e++) rank[e] = bias ? s[e] + bias[e] : s[e];
        memset(used, 0, (size_t)E);
        if (kept) leave_groups(rank, used, E, G, kept, flags & BY_TWO_BEST, rank + E, used + E);
        float sum = 0;
        for (int64_t k = 0; k < K; k++) {
            int64_t e = best(rank, used, E);
            used[e] = 1;
            indices[n * K + k] = e;
            sum += s[e];
        }
        float scale = flags & NORMALISE ? factor / (sum + 1e-20f) : factor;
        for (int64_t k = 0; k < K; k++) weights[n * K + k] = s[indices[n * K + k]] * scale;
    }
    free(rank);
    free(used);
    return -failed;
}

/* grad_scores [N,E] or null (none came), grad_weights [N,K] -> grad_logits [N,E]. */
int64_t router_backward(const float *scores, const int64_t *indices, const float *grad_scores,
                        const float *grad_weights, float *grad_logits, int64_t N, int64_t E, int64_t K, float factor,
                        int flags) {
    for (int64_t n = 0; n < N; n++) {
        const float *s = scores + n * E, *gw = grad_weights + n * K;
        const int64_t *chosen = indices + n * K;
        float *g = grad_logits + n * E, sum = 0, dot = 0;
        for (int64_t k = 0; k < K; k++) {
            sum += s[chosen[k]];
            dot += gw[k] * s[chosen[k]];
        }
        if (grad_scores)
            memcpy(g, grad_scores + n * E, (size_t)E * sizeof *g);
        else
            memset(g, 0, (size_t)E * sizeof *g);
        float inverse = 1.0f / (sum + 1e-20f);
        for (int64_t k = 0; k < K; k++)
            g[chosen[k]] += flags & NORMALISE ? factor * inverse * (gw[k] - dot * inverse) : factor * gw[k];
        if (flags & SIGMOID) {
            for (int64_t e = 0; e < E; e++) g[e] *= s[e] * (1.0f - s[e]);
        } else {
            float mean = 0;
            for (int64_t e = 0; e < E; e++) mean += g[e] * s[e];
            for (int64_t e = 0; e < E; e++) g[e] = s[e] * (g[e] - mean);
        }
    }
    return 0;
}

/* Sum over experts of f*P, averaged over B sequences of T tokens; `valid` [B,T] bytes or null.
 * frequency [B,E] keeps f / (length * B) for the backward. Returns -2 when an index is not in 0..E-1. */
int64_t balance_forward(const float *scores, const int64_t *indices, const uint8_t *valid, float *frequency,
                        float *loss, int64_t B, int64_t T, int64_t E, int64_t K) {
    float *share = calloc((size_t)E, sizeof *share);
    if (!share) return -1;
    double total = 0;
    for (int64_t b = 0; b < B; b++) {
        float *f = frequency + b * E, length = 0;
        memset(f, 0, (size_t)E * sizeof *f);
        memset(share, 0, (size_t)E * sizeof *share);
        for (int64_t n = b * T; n < (b + 1) * T; n++) {
            if (valid && !valid[n]) continue;
            length += 1;
            float sum = 0;
            for (int64_t e = 0; e < E; e++) sum += scores[n * E + e];
            for (int64_t e = 0; e < E; e++) share[e] += scores[n * E + e] / sum;
            for (int64_t k = 0; k < K; k++) {
                int64_t e = indices[n * K + k];
                if (e < 0 || e >= E) {
                    free(share);
                    return -2;
                }
                f[e] += 1;
            }
        }
        if (length < 1) length = 1;
        for (int64_t e = 0; e < E; e++) {
            f[e] *= (float)E / ((float)K * length) / (length * (float)B);
            total += (double)f[e] * share[e];
        }
    }
    *loss = (float)total;
    free(share);
    return 0;
}

int64_t balance_backward(const float *scores, const uint8_t *valid, const float *frequency, const float *grad,
                         float *grad_scores, int64_t B, int64_t T, int64_t E) {
    for (int64_t n = 0; n < B * T; n++) {
        const float *s = scores + n * E, *f = frequency + n / T * E;
        float *g = grad_scores + n * E, sum = 0, dot = 0;
        for (int64_t e = 0; e < E; e++) {
            sum += s[e];
            dot += s[e] * f[e];
        }
        float scale = valid && !valid[n] ? 0 : *grad / sum;
        for (int64_t e = 0; e < E; e++) g[e] = scale == 0 ? 0 : scale * (f[e] - dot / sum);
    }
    return 0;
}
