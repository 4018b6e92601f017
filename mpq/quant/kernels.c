/* What the layers do between products, each in one pass over memory; see compiled.py.
 *
 * Every sum and product is rounded as written (no contraction but fmaf, which torch's addcmul is too), so that rounding
 * and scaling give the numbers of the same steps by torch, bit for bit, and no number depends on its place in a row.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 64 /* numbers that fill vectors of any processor, eight-bit ones too */
#define LANES 16
#define PART (32 * BLOCK)

/* Largest size of a row, as an integer: there numbers without their sign have the same order, and NaN comes last. */
static int32_t largest(const float *x, int64_t columns) {
    int32_t most = 0;
    for (int64_t j = 0; j < columns; j++) {
        int32_t bits;
        memcpy(&bits, x + j, sizeof bits);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    return most;
}

static float scale_of(int32_t most, float tiny, float top) {
    float size;
    memcpy(&size, &most, sizeof size);
    return (size < tiny ? tiny : size) / top;
}

/* codes = round(x / scale) for as many numbers as fill vectors of any processor. The quotient is made from the
 * reciprocal and corrected by the exact rest (Markstein 1990), which gives the digits of a division in a part of its
 * time. */
static inline void round_block(const float *restrict x, int8_t *restrict codes, float scale, float reciprocal) {
    for (int j = 0; j < BLOCK; j++) {
        float quotient = x[j] * reciprocal;
        float rest = fmaf(-quotient, scale, x[j]);
        codes[j] = (int8_t)(int32_t)rintf(fmaf(rest, reciprocal, quotient));
    }
}

static void round_row(const float *x, int8_t *codes, int64_t columns, float scale) {
    float reciprocal = 1.0f / scale;
    int64_t j = 0;
    for (; j + BLOCK <= columns; j += BLOCK) round_block(x + j, codes + j, scale, reciprocal);
    if (j < columns) {
        float last[BLOCK] = {0};
        int8_t last_codes[BLOCK];
        memcpy(last, x + j, (columns - j) * sizeof *x);
        round_block(last, last_codes, scale, reciprocal);
        memcpy(codes + j, last_codes, columns - j);
    }
}

/* Rows of x, `stride` apart, to int8 codes of a scale each: scale = max(largest, tiny) / top. */
void int8_rows(const float *x, int64_t stride, int8_t *codes, float *scale, int64_t rows, int64_t columns, float tiny,
               float top) {
    for (int64_t i = 0; i < rows; i++) {
        scale[i] = scale_of(largest(x + i * stride, columns), tiny, top);
        round_row(x + i * stride, codes + i * columns, columns, scale[i]);
    }
}

/* The same for the windows of a convolution over one or two dimensions, channels last: windows first to first + count
 * of size[0] * size[1] * size[2], whose corners are stride[0..2] apart, each of taps[0] * taps[1] places,
 * tap_stride[0..1] apart, of `channels` numbers side by side. `window` has room for one. */
void int8_windows(const float *x, const int64_t *size, const int64_t *stride, const int64_t *taps,
                  const int64_t *tap_stride, int64_t channels, float *window, int8_t *codes, float *scale,
                  int64_t first, int64_t count, float tiny, float top) {
    const int64_t columns = taps[0] * taps[1] * channels;
    for (int64_t i = first; i < first + count; i++) {
        const float *corner =
            x + i / (size[1] * size[2]) * stride[0] + i / size[2] % size[1] * stride[1] + i % size[2] * stride[2];
        float *place = window;
        for (int64_t a = 0; a < taps[0]; a++)
            for (int64_t b = 0; b < taps[1]; b++, place += channels)
                memcpy(place, corner + a * tap_stride[0] + b * tap_stride[1], channels * sizeof *x);
        scale[i] = scale_of(largest(window, columns), tiny, top);
        round_row(window, codes + i * columns, columns, scale[i]);
    }
}

/* out = bias + row * (scale * total), total (rows, columns) integers whose place `out` may take; rows of out are
 * `out_stride` apart, those of a bias `bias_stride`, 0 where it is one row; without a bias the products alone. */
void scale_rows(const int32_t *total, const float *scale, const float *row, const float *bias, int64_t bias_stride,
                float *out, int64_t out_stride, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i++, total += columns, out += out_stride) {
        const float each = row[i];
        const float *added = bias + i * bias_stride;
        if (bias)
#pragma GCC ivdep
            for (int64_t j = 0; j < columns; j++) out[j] = fmaf((float)total[j] * scale[j], each, added[j]);
        else
#pragma GCC ivdep
            for (int64_t j = 0; j < columns; j++) out[j] = (float)total[j] * scale[j] * each;
    }
}

/* 2^n e^r, n whole and r at most log 2 / 2 either way, within two units of the last digit (Cephes, expf). */
static inline float power(float n, float r) {
    float y = fmaf(1.9875691500e-4f, r, 1.3981999507e-3f);
    y = fmaf(y, r, 8.3334519073e-3f);
    y = fmaf(y, r, 4.1665795894e-2f);
    y = fmaf(y, r, 1.6666665459e-1f);
    y = fmaf(y, r, 5.0000001201e-1f);
    y = fmaf(y, r * r, r) + 1.0f;
    uint32_t bits = ((uint32_t)(int32_t)n + 127) << 23;
    float two_to_n;
    memcpy(&two_to_n, &bits, sizeof two_to_n);
    return y * two_to_n;
}

/* e^x for x from -87 to 87. */
static inline float exponential(float x) {
    float n = rintf(x * 1.44269504f);
    return power(n, fmaf(n, 2.12194440e-4f, fmaf(n, -0.693359375f, x)));
}

static inline float sigmoid(float x) {
    float y = -x;
    y = y > 87.0f ? 87.0f : y;
    y = y < -87.0f ? -87.0f : y;
    float result = 1.0f / (1.0f + exponential(y));
    return x < -87.0f ? 0.0f : result;
}

void sigmoids(float *x, int64_t count) {
    for (int64_t j = 0; j < count; j++) x[j] = sigmoid(x[j]);
}

/* GELU by its tanh approximation, out = gate x; the gates are kept where there is a place for them. */
void gelus(const float *x, float *gate, float *out, int64_t count) {
    for (int64_t j = 0; j < count; j++) {
        float g = sigmoid(x[j] * fmaf(0.07135481282f * x[j], x[j], 1.595769122f));
        if (gate) gate[j] = g;
        out[j] = g * x[j];
    }
}

/* A step of an LSTM for some rows of `size` units; gates i, f, g, o before their nonlinearity are replaced by those
 * after it. c = f c + i g, h = o tanh(c), tanh(x) = 2 sigmoid(2 x) - 1. */
void lstm_cells(float *restrict gates, const float *before, float *c, float *tanh_c, float *h, int64_t rows,
                int64_t size) {
    for (int64_t k = 0; k < rows; k++, before += size, c += size, tanh_c += size, h += size) {
        float *i = gates + 4 * k * size, *f = i + size, *g = f + size, *o = g + size;
#pragma GCC ivdep
        for (int64_t j = 0; j < size; j++) {
            i[j] = sigmoid(i[j]);
            f[j] = sigmoid(f[j]);
            g[j] = 2.0f * sigmoid(2.0f * g[j]) - 1.0f;
            o[j] = sigmoid(o[j]);
            float cell = fmaf(f[j], before[j], i[j] * g[j]);
            float bounded = 2.0f * sigmoid(2.0f * cell) - 1.0f;
            c[j] = cell;
            tanh_c[j] = bounded;
            h[j] = o[j] * bounded;
        }
    }
}

/* The largest number of a row; NaN are passed over. */
static float top_of(const float *x, int64_t columns) {
    float tops[LANES], top = -INFINITY;
    int64_t whole = columns / LANES * LANES;
    for (int k = 0; k < LANES; k++) tops[k] = -INFINITY;
    for (int64_t j = 0; j < whole; j += LANES)
        for (int k = 0; k < LANES; k++) tops[k] = x[j + k] > tops[k] ? x[j + k] : tops[k];
    for (int k = 0; k < LANES; k++) top = tops[k] > top ? tops[k] : top;
    for (int64_t j = whole; j < columns; j++) top = x[j] > top ? x[j] : top;
    return top;
}

/* The sum of a row. */
static double sum_of(const float *x, int64_t columns) {
    double sums[LANES] = {0}, sum = 0;
    int64_t whole = columns / LANES * LANES;
    for (int64_t j = 0; j < whole; j += LANES)
        for (int k = 0; k < LANES; k++) sums[k] += x[j + k];
    for (int k = 0; k < LANES; k++) sum += sums[k];
    for (int64_t j = whole; j < columns; j++) sum += x[j];
    return sum;
}

/* Rows of scores to the powers of two of what they are below their largest, and the sums of these. */
void softmax_rows(float *x, float *sums, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i++, x += columns) {
        float top = top_of(x, columns);
        for (int64_t j = 0; j < columns; j++) {
            float below = x[j] - top, kept = below < -126.0f ? -126.0f : below, n = rintf(kept);
            float y = power(n, (kept - n) * 0.693147181f);
            x[j] = below < -126.0f ? 0.0f : y;
        }
        sums[i] = (float)sum_of(x, columns);
    }
}

/* The pairs (x[j], x[j + half]) of vectors of 2 half numbers, turned by the angles of their row's place in time: x
 * (rows, times, heads, 2 half), turns (2, times, half) cosines and sines; to out. */
void turn_pairs(const float *x, const float *turns, float *out, int64_t first, int64_t rows, int64_t times,
                int64_t heads, int64_t half) {
    for (int64_t i = first; i < first + rows; i++) {
        const float *a = x + 2 * half * i, *b = a + half;
        const float *cosine = turns + i / heads % times * half, *sine = cosine + times * half;
        float *turned = out + 2 * half * i;
        for (int64_t j = 0; j < half; j++) {
            turned[j] = a[j] * cosine[j] + b[j] * -sine[j];
            turned[j + half] = b[j] * cosine[j] + a[j] * sine[j];
        }
    }
}

/* log sum exp of every row; a part of it at a time is added up in float. */
void log_sums(const float *x, float *out, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i++, x += columns) {
        float top = top_of(x, columns), last[BLOCK];
        if (isinf(top)) {
            out[i] = top;
            for (int64_t j = 0; j < columns; j++) out[i] = isnan(x[j]) ? x[j] : out[i];
            continue;
        }
        double sum = 0;
        for (int64_t first = 0; first < columns; first += PART) {
            float sums[BLOCK] = {0};
            int64_t end = first + PART < columns ? first + PART : columns;
            for (int64_t j = first; j < end; j += BLOCK) {
                const float *some = x + j;
                if (j + BLOCK > end) { /* fill up a vector with what adds nothing */
                    for (int k = 0; k < BLOCK; k++) last[k] = -INFINITY;
                    memcpy(last, some, (end - j) * sizeof *x);
                    some = last;
                }
                for (int k = 0; k < BLOCK; k++) {
                    float below = some[k] - top, kept = below < -87.0f ? -87.0f : below;
                    sums[k] += below < -87.0f ? 0.0f : exponential(kept);
                }
            }
            sum += sum_of(sums, BLOCK);
        }
        out[i] = (float)(top + log(sum));
    }
}

/* Rows of n_bytes to the levels that they hold, step * rank + lowest, ranks being the digits of a byte in base 3 or
 * 2^bits, the lowest digits of all bytes first. */
void unpack_rows(const uint8_t *data, int8_t *out, int64_t rows, int64_t n_bytes, int64_t digits, int64_t bits,
                 int64_t base_3, int64_t step, int64_t lowest) {
    uint16_t rest[256];
    for (int64_t i = 0; i < rows; i++, data += n_bytes, out += digits * n_bytes)
        for (int64_t first = 0; first < n_bytes; first += 256) {
            int count = n_bytes - first < 256 ? (int)(n_bytes - first) : 256;
            for (int k = 0; k < count; k++) rest[k] = data[first + k];
            for (int64_t j = 0; j < digits; j++) {
                int8_t *place = out + j * n_bytes + first;
                if (base_3)
                    for (int k = 0; k < count; k++) {
                        uint16_t above = (uint16_t)((uint16_t)(rest[k] * 171) >> 9); /* rest / 3: exact up to 255 */
                        place[k] = (int8_t)(rest[k] - 3 * above + lowest);
                        rest[k] = above;
                    }
                else
                    for (int k = 0; k < count; k++) {
                        place[k] = (int8_t)((rest[k] & ((1 << bits) - 1)) * step + lowest);
                        rest[k] = (uint16_t)(rest[k] >> bits);
                    }
            }
        }
}
