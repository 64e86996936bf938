/* RMSNorm over rows of D: y = w * x * rstd, rstd = 1 / sqrt(mean(x^2) + eps); and the sum of a residual stream with what
 * a layer adds to it, followed by the norm of that sum. */
#include "vec.h"

enum { CHUNK = 32 }; /* rows whose weight gradients are summed together, whatever the number of threads */

/* x rows are `ld` apart; rstd [rows]. */
INLINE void forward(const void *x, int64_t ld, const void *w, void *y, float *rstd, int64_t rows, int64_t D, float eps,
                    int threads, int xh, int wh, int yh) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < rows; i++) {
        vf s0 = splat(0), s1 = splat(0);
        int64_t j = 0;
        for (; j + 2 * W <= D; j += 2 * W) {
            vf a = load(x, i * ld + j, xh), b = load(x, i * ld + j + W, xh);
            s0 += a * a;
            s1 += b * b;
        }
        for (; j < D; j += W) {
            vf a = load_n(x, i * ld + j, D - j, xh);
            s0 += a * a;
        }
        float scale = 1.0f / sqrtf(hsum(s0 + s1) / (float)D + eps);
        rstd[i] = scale;
        for (j = 0; j + W <= D; j += W) store(y, i * D + j, load(x, i * ld + j, xh) * scale * load(w, j, wh), yh);
        if (j < D) store_n(y, i * D + j, load_n(x, i * ld + j, D - j, xh) * scale * load_n(w, j, D - j, wh), D - j, yh);
    }
}

/* grad_x = rstd * (g*w - xhat * mean(g*w*xhat)) + extra; grad_w = sum over rows of g*xhat, via `partial` [chunks, D'].
 * `extra` [rows,D] fp32 is added, and `grad_delta` gets the same numbers as grad_x, where they are not null. */
INLINE void backward_with(const void *x, int64_t ld, const void *w, const float *rstd, const float *extra,
                          const void *grad, void *grad_x, void *grad_delta, void *grad_w, float *partial, int64_t rows,
                          int64_t D, int threads, int xh, int dh, int wh, int yh) {
    int64_t chunks = (rows + CHUNK - 1) / CHUNK, Dp = round_up(D, W);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        float *sum_w = partial + chunk * Dp;
        memset(sum_w, 0, (size_t)Dp * 4);
        for (int64_t i = chunk * CHUNK; i < rows && i < (chunk + 1) * CHUNK; i++) {
            float scale = rstd[i];
            vf dot = splat(0);
            for (int64_t j = 0; j < D; j += W) {
                vf g = load_n(grad, i * D + j, D - j, yh), xs = load_n(x, i * ld + j, D - j, xh);
                vf product = g * (xs * scale);
                dot += product * load_n(w, j, D - j, wh);
                store(sum_w, j, load(sum_w, j, 0) + product, 0);
            }
            float mean = hsum(dot) / (float)D * scale;
            for (int64_t j = 0; j < D; j += W) {
                vf g = load_n(grad, i * D + j, D - j, yh), xs = load_n(x, i * ld + j, D - j, xh);
                vf sum = scale * (g * load_n(w, j, D - j, wh) - xs * mean);
                if (extra) sum += load_n(extra, i * D + j, D - j, 0);
                store_n(grad_x, i * D + j, sum, D - j, xh);
                if (grad_delta) store_n(grad_delta, i * D + j, sum, D - j, dh);
            }
        }
    }
    for (int64_t j = 0; j < D; j += W) {
        vf sum = splat(0);
        for (int64_t chunk = 0; chunk < chunks; chunk++) sum += load(partial, chunk * Dp + j, 0);
        store_n(grad_w, j, sum, D - j, wh);
    }
}

INLINE void backward(const void *x, int64_t ld, const void *w, const float *rstd, const void *grad, void *grad_x,
                     void *grad_w, float *partial, int64_t rows, int64_t D, int threads, int xh, int wh, int yh) {
    backward_with(x, ld, w, rstd, NULL, grad, grad_x, NULL, grad_w, partial, rows, D, threads, xh, 0, wh, yh);
}

INLINE void add_backward(const float *total, const void *w, const float *rstd, const float *grad_total,
                         const void *grad, float *grad_x, void *grad_delta, void *grad_w, float *partial, int64_t rows,
                         int64_t D, int threads, int dh, int wh, int yh) {
    backward_with(total, D, w, rstd, grad_total, grad, grad_x, grad_delta, grad_w, partial, rows, D, threads, 0, dh, wh,
                  yh);
}

/* total = x + delta (total and x fp32), then as above on total. */
INLINE void add_forward(const float *x, const void *delta, const void *w, float *total, void *y, float *rstd,
                        int64_t rows, int64_t D, float eps, int threads, int dh, int wh, int yh) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < rows; i++) {
        vf sum = splat(0);
        for (int64_t j = 0; j < D; j += W) {
            vf a = load_n(x, i * D + j, D - j, 0) + load_n(delta, i * D + j, D - j, dh);
            store_n(total, i * D + j, a, D - j, 0);
            sum += a * a;
        }
        float scale = 1.0f / sqrtf(hsum(sum) / (float)D + eps);
        rstd[i] = scale;
        for (int64_t j = 0; j < D; j += W)
            store_n(y, i * D + j, load_n(total, i * D + j, D - j, 0) * scale * load_n(w, j, D - j, wh), D - j, yh);
    }
}

/* The dtypes are constants in each of the eight copies. */
#define COPIES(f, ...)                                                                                     \
    switch (xh * 4 + wh * 2 + yh) {                                                                        \
    case 0: f(__VA_ARGS__, 0, 0, 0); break;                                                                \
    case 1: f(__VA_ARGS__, 0, 0, 1); break;                                                                \
    case 2: f(__VA_ARGS__, 0, 1, 0); break;                                                                \
    case 3: f(__VA_ARGS__, 0, 1, 1); break;                                                                \
    case 4: f(__VA_ARGS__, 1, 0, 0); break;                                                                \
    case 5: f(__VA_ARGS__, 1, 0, 1); break;                                                                \
    case 6: f(__VA_ARGS__, 1, 1, 0); break;                                                                \
    default: f(__VA_ARGS__, 1, 1, 1);                                                                      \
    }

int64_t norm_forward(const void *x, int64_t ld, const void *w, void *y, float *rstd, int64_t rows, int64_t D, float eps,
                     int threads, int xh, int wh, int yh) {
    COPIES(forward, x, ld, w, y, rstd, rows, D, eps, threads)
    return 0;
}

/* `partial` holds ceil(rows / 32) * round_up(D, 16) floats. */
int64_t norm_backward(const void *x, int64_t ld, const void *w, const float *rstd, const void *grad, void *grad_x,
                      void *grad_w, float *partial, int64_t rows, int64_t D, int threads, int xh, int wh, int yh) {
    COPIES(backward, x, ld, w, rstd, grad, grad_x, grad_w, partial, rows, D, threads)
    return 0;
}

int64_t norm_add_forward(const float *x, const void *delta, const void *w, float *total, void *y, float *rstd,
                         int64_t rows, int64_t D, float eps, int threads, int xh, int wh, int yh) {
    COPIES(add_forward, x, delta, w, total, y, rstd, rows, D, eps, threads)
    return 0;
}

/* grad_total [rows,D], what came for the sum itself, or null; grad_x fp32; `partial` as in norm_backward. */
int64_t norm_add_backward(const float *total, const void *w, const float *rstd, const float *grad_total,
                          const void *grad, float *grad_x, void *grad_delta, void *grad_w, float *partial, int64_t rows,
                          int64_t D, int threads, int xh, int wh, int yh) {
    COPIES(add_backward, total, w, rstd, grad_total, grad, grad_x, grad_delta, grad_w, partial, rows, D, threads)
    return 0;
}
