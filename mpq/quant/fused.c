/* Whole modules of a quantized network, each utterance or a few rows at a time, so that what stands between their steps
 * stays in the processor's cache: normalization, products, nonlinearity, attention, residual sum; see fused.py.
 */
#include "product.c"

#ifdef FUSED
/* What normalizes a layer's input: gains and offsets (columns). */
typedef struct {
    const float *gain, *offset;
    float epsilon;
} Norm;

static inline float sum_of_lanes(const float *x, int64_t columns) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t j = 0; j < columns; j += VECTOR)
        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(first_lanes(columns - j), x + j));
    return _mm512_reduce_add_ps(sum);
}

/* A row less its mean, by its standard deviation, times gains, plus offsets. */
static inline void norm_one(const float *x, float *out, int64_t columns, const Norm *norm, float *mean_out,
                            float *by_out) {
    const float mean = sum_of_lanes(x, columns) / (float)columns;
    const __m512 less = _mm512_set1_ps(mean);
    __m512 squares = _mm512_setzero_ps();
    for (int64_t j = 0; j < columns; j += VECTOR) {
        const __mmask16 kept = first_lanes(columns - j);
        const __m512 off = _mm512_maskz_sub_ps(kept, _mm512_maskz_loadu_ps(kept, x + j), less);
        squares = _mm512_fmadd_ps(off, off, squares);
    }
    const float by = 1.0f / sqrtf(_mm512_reduce_add_ps(squares) / (float)columns + norm->epsilon);
    const __m512 times = _mm512_set1_ps(by);
    for (int64_t j = 0; j < columns; j += VECTOR) {
        const __mmask16 kept = first_lanes(columns - j);
        const __m512 off = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(kept, x + j), less), times);
        const __m512 result = _mm512_fmadd_ps(off, _mm512_maskz_loadu_ps(kept, norm->gain + j),
                                              _mm512_maskz_loadu_ps(kept, norm->offset + j));
        _mm512_mask_storeu_ps(out + j, kept, result);
    }
    if (mean_out) *mean_out = mean, *by_out = by;
}

/* 2^n e^r, as `power` in kernels.c. */
static inline __m512 powers(__m512 n, __m512 r) {
    __m512 y = _mm512_fmadd_ps(_mm512_set1_ps(1.9875691500e-4f), r, _mm512_set1_ps(1.3981999507e-3f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(8.3334519073e-3f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(4.1665795894e-2f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.6666665459e-1f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(5.0000001201e-1f));
    y = _mm512_add_ps(_mm512_fmadd_ps(y, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, n);
}

/* 2^x for x at most 0, as `power` in kernels.c. */
static inline __m512 power_of_two(__m512 x) {
    const __m512 kept = _mm512_max_ps(_mm512_set1_ps(-200.0f), x), n = _mm512_roundscale_ps(kept, 0);
    const __m512 r = _mm512_mul_ps(_mm512_sub_ps(kept, n), _mm512_set1_ps(0.693147181f));
    return powers(n, r);
}

/* 1 / (1 + e^-x), within two units of the last digit; 0 below -80. NaN stay NaN, as the second of two to compare. */
static inline __m512 sigmoid_of(__m512 x) {
    const __m512 most = _mm512_set1_ps(80.0f), least = _mm512_set1_ps(-80.0f);
    const __m512 y = _mm512_max_ps(least, _mm512_min_ps(most, _mm512_sub_ps(_mm512_setzero_ps(), x)));
    const __mmask16 kept = _mm512_cmp_ps_mask(x, least, _CMP_NLT_UQ);
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(y, _mm512_set1_ps(1.44269504f)), 0);
    const __m512 r =
        _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), _mm512_fmadd_ps(n, _mm512_set1_ps(-0.693359375f), y));
    const __m512 one = _mm512_set1_ps(1.0f), below = _mm512_add_ps(one, powers(n, r));
    const __m512 about = _mm512_rcp14_ps(below);
    return _mm512_maskz_fmadd_ps(kept, about, _mm512_fnmadd_ps(below, about, one), about); /* Newton's step */
}

/* x sigmoid(x) */
void silus(const float *x, float *out, int64_t count) {
    for (int64_t j = 0; j < count; j += VECTOR) {
        const __mmask16 kept = first_lanes(count - j);
        const __m512 some = _mm512_maskz_loadu_ps(kept, x + j);
        _mm512_mask_storeu_ps(out + j, kept, _mm512_mul_ps(some, sigmoid_of(some)));
    }
}

/* Gated linear units: the first half of a row (2 columns) times the sigmoids of the second, times `by`; to out. */
static inline void gate_one(const float *x, float by, float *out, int64_t columns) {
    for (int64_t j = 0; j < columns; j += VECTOR) {
        const __mmask16 kept = first_lanes(columns - j);
        const __m512 gate = sigmoid_of(_mm512_maskz_loadu_ps(kept, x + columns + j));
        const __m512 gated = _mm512_mul_ps(_mm512_maskz_loadu_ps(kept, x + j), gate);
        _mm512_mask_storeu_ps(out + j, kept, _mm512_mul_ps(gated, _mm512_set1_ps(by)));
    }
}

void gate_rows(const float *x, float *out, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i++) gate_one(x + 2 * i * columns, 1.0f, out + i * columns, columns);
}

void norm_rows(const float *x, const Norm *norm, float *out, float *mean, float *by, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i++) norm_one(x + i * columns, out + i * columns, columns, norm, mean + i, by + i);
}

/* At most AT_ONCE rows of x, normalized if they are to be, by a matrix; where there are rows to add them `onto`,
 * `factor` times the product. */
static void linear_rows(const float *x, int64_t x_stride, int64_t rows, const Norm *norm, const Matrix *m, Rows *b,
                        const float *onto, float factor, float *out, int64_t out_stride) {
    for (int64_t r = 0; r < rows; r++) {
        const float *row = x + r * x_stride;
        if (norm) {
            norm_one(row, b->normed, m->inputs, norm, 0, 0);
            row = b->normed;
        }
        round_one(row, m->inputs, b, r);
    }
    product(b, rows, m, m->bias, 0, onto, factor, out, out_stride);
}

/* x + factor * second(silu(first(norm(x)))), to out. */
int feed_forward(const float *x, const Norm *norm, const Matrix *first, const Matrix *second, float factor, float tiny,
                 float top, float *out, int64_t rows) {
    const int64_t columns = first->inputs, inner = first->outputs;
    char *room = aligned_alloc(64, bytes_of_rows(MOST(columns, inner)) + up_to(4 * AT_ONCE * inner, 64)), *place = room;
    if (!room) return 0;
    Rows b = rows_at(&place, MOST(columns, inner), tiny, top);
    float *hidden = take(&place, AT_ONCE * inner);
    for (int64_t i = 0; i < rows; i += AT_ONCE) {
        const int64_t some = LEAST(rows - i, AT_ONCE);
        linear_rows(x + i * columns, columns, some, norm, first, &b, 0, 1.0f, hidden, inner);
        silus(hidden, hidden, some * inner);
        linear_rows(hidden, inner, some, 0, second, &b, x + i * columns, factor, out + i * columns, columns);
    }
    free(room);
    return 1;
}

/* A step of an LSTM: hidden rows h, rounded, by the recurrent matrix, plus gates `gates_stride` apart; c_out and h_out
 * are the cells and hidden rows after it. */
int lstm_step(const float *gates, int64_t gates_stride, const float *h, const float *c, const Matrix *m, float tiny,
              float top, float *c_out, float *h_out, int64_t rows) {
    const int64_t size = m->inputs, wide = m->outputs;
    char *room = aligned_alloc(64, bytes_of_rows(size) + up_to(4 * AT_ONCE * wide, 64) + up_to(4 * AT_ONCE * size, 64)),
         *place = room;
    if (!room) return 0;
    Rows b = rows_at(&place, size, tiny, top);
    float *active = take(&place, AT_ONCE * wide), *tanh_c = take(&place, AT_ONCE * size);
    for (int64_t i = 0; i < rows; i += AT_ONCE) {
        const int64_t some = LEAST(rows - i, AT_ONCE);
        for (int64_t r = 0; r < some; r++) round_one(h + (i + r) * size, size, &b, r);
        product(&b, some, m, gates + i * gates_stride, gates_stride, 0, 1.0f, active, wide);
        lstm_cells(active, c + i * size, c_out + i * size, tanh_c, h_out + i * size, some, size);
    }
    free(room);
    return 1;
}

#define QUERIES (2 * VECTOR)

/* out (count, QUERIES) = a few rows of keys (count, width) times queries (width, QUERIES), plus a bias each; `most`
 * becomes the largest of each query's. Of queries, weights and results half is left out where `halves` is 1. */
INLINE void score(const int count, const int halves, const float *keys, int64_t stride, const float *queries,
                  int64_t width, const float *bias, float *out, __m512 *most) {
    __m512 low[12], high[12];
#pragma GCC unroll 12
    for (int i = 0; i < count; i++) low[i] = high[i] = _mm512_set1_ps(bias[i]);
    for (int64_t d = 0; d < width; d++, queries += QUERIES) {
        const __m512 a = _mm512_loadu_ps(queries), b = halves > 1 ? _mm512_loadu_ps(queries + VECTOR) : a;
#pragma GCC unroll 12
        for (int i = 0; i < count; i++) {
            const __m512 key = _mm512_set1_ps(keys[i * stride + d]);
            low[i] = _mm512_fmadd_ps(key, a, low[i]);
            if (halves > 1) high[i] = _mm512_fmadd_ps(key, b, high[i]);
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < count; i++, out += QUERIES) {
        _mm512_storeu_ps(out, low[i]);
        most[0] = _mm512_max_ps(most[0], low[i]);
        if (halves > 1) _mm512_storeu_ps(out + VECTOR, high[i]);
        if (halves > 1) most[1] = _mm512_max_ps(most[1], high[i]);
    }
}

/* out (count, QUERIES) = a few columns of values (times, ...) times weights (times, QUERIES), times `by`. */
INLINE void mix(const int count, const int halves, const float *values, int64_t stride, const float *weights,
                int64_t times, const __m512 *by, float *out) {
    __m512 low[12], high[12];
#pragma GCC unroll 12
    for (int i = 0; i < count; i++) low[i] = high[i] = _mm512_setzero_ps();
    for (int64_t t = 0; t < times; t++, values += stride, weights += QUERIES) {
        const __m512 a = _mm512_loadu_ps(weights), b = halves > 1 ? _mm512_loadu_ps(weights + VECTOR) : a;
#pragma GCC unroll 12
        for (int i = 0; i < count; i++) {
            const __m512 value = _mm512_set1_ps(values[i]);
            low[i] = _mm512_fmadd_ps(value, a, low[i]);
            if (halves > 1) high[i] = _mm512_fmadd_ps(value, b, high[i]);
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < count; i++, out += QUERIES) {
        _mm512_storeu_ps(out, _mm512_mul_ps(low[i], by[0]));
        if (halves > 1) _mm512_storeu_ps(out + VECTOR, _mm512_mul_ps(high[i], by[1]));
    }
}

/* `attend_one` for queries (width, QUERIES), to mixed (width, QUERIES); scores (keys, QUERIES) become the weights
 * before they are divided by their sums, `most` and `sum` (halves) are what these were made of. */
INLINE void attend_some(const int halves, const float *queries, const float *k, const float *v, int64_t stride,
                        const float *bias, int64_t keys, int64_t width, float *scores, float *mixed, __m512 *most,
                        __m512 *sum) {
    int64_t t = 0, d = 0;
    for (int h = 0; h < 2; h++) most[h] = _mm512_set1_ps(-INFINITY), sum[h] = _mm512_setzero_ps();
    for (; t + 12 <= keys; t += 12)
        score(12, halves, k + t * stride, stride, queries, width, bias + t, scores + t * QUERIES, most);
    for (; t + 4 <= keys; t += 4)
        score(4, halves, k + t * stride, stride, queries, width, bias + t, scores + t * QUERIES, most);
    for (; t < keys; t++)
        score(1, halves, k + t * stride, stride, queries, width, bias + t, scores + t * QUERIES, most);
    for (int h = 0; h < halves; h++) most[h] = _mm512_max_ps(_mm512_set1_ps(-3.4e38f), most[h]); /* NaN stay */
    for (t = 0; t < keys; t++)
        for (int h = 0; h < halves; h++) {
            float *place = scores + t * QUERIES + h * VECTOR;
            const __m512 weight = power_of_two(_mm512_sub_ps(_mm512_loadu_ps(place), most[h]));
            sum[h] = _mm512_add_ps(sum[h], weight);
            _mm512_storeu_ps(place, weight);
        }
    __m512 by[2]; /* 0 for what sees no key */
    for (int h = 0; h < 2; h++)
        by[h] = _mm512_maskz_div_ps(_mm512_cmp_ps_mask(sum[h], _mm512_setzero_ps(), _CMP_NEQ_UQ), _mm512_set1_ps(1.0f),
                                    sum[h]);
    for (; d + 12 <= width; d += 12) mix(12, halves, v + d, stride, scores, keys, by, mixed + d * QUERIES);
    for (; d + 4 <= width; d += 4) mix(4, halves, v + d, stride, scores, keys, by, mixed + d * QUERIES);
    for (; d < width; d++) mix(1, halves, v + d, stride, scores, keys, by, mixed + d * QUERIES);
}

/* softmax(q k^T / sqrt(width) + bias) v of one head: rows of q, k and v (times, width) are `stride` apart, those of out
 * `out_stride`. A vector holds as many queries, so that nothing is summed across it, and a query's numbers are the same
 * wherever it stands. `log_sum` (times), if wanted: logarithms of what the weights were divided by. `room` has places
 * for QUERIES * (times + 2 width) floats. */
static void attend_one(const float *q, const float *k, const float *v, int64_t stride, const float *bias, int64_t times,
                       int64_t width, float *out, int64_t out_stride, float *log_sum, float *room) {
    const float log2_e = 1.44269504f, by = log2_e / sqrtf((float)width);
    float *queries = room, *mixed = queries + QUERIES * width, *scores = mixed + QUERIES * width;
    int64_t keys = times;
    while (keys > 1 && bias[keys - 1] == -INFINITY) keys--;
    for (int64_t first = 0; first < times; first += QUERIES) {
        const int64_t some = LEAST(times - first, QUERIES);
        __m512 most[2], sum[2];
        if (some < QUERIES) memset(queries, 0, QUERIES * width * sizeof *queries);
        for (int64_t i = 0; i < some; i++)
            for (int64_t d = 0; d < width; d++) queries[d * QUERIES + i] = q[(first + i) * stride + d] * by;
        if (some > VECTOR)
            attend_some(2, queries, k, v, stride, bias, keys, width, scores, mixed, most, sum);
        else
            attend_some(1, queries, k, v, stride, bias, keys, width, scores, mixed, most, sum);
        for (int64_t i = 0; i < some; i++)
            for (int64_t d = 0; d < width; d++) out[(first + i) * out_stride + d] = mixed[d * QUERIES + i];
        for (int64_t i = 0; log_sum && i < some; i++) {
            const float divisor = ((float *)sum)[i];
            log_sum[first + i] = divisor == 0.0f ? 0.0f : (((float *)most)[i] + log2f(divisor)) / log2_e;
        }
    }
}

/* Attention of heads first to first + count, of an utterance each `heads`: strides of utterances, heads and times for
 * q, k, v and for out; bias (utterances, times); log_sum (utterances, heads, times): logarithms of the sums that a
 * softmax divides by, wanted where gradients will be. */
int attend(const float *q, const float *k, const float *v, const int64_t *strides, const float *bias, int64_t heads,
           int64_t times, int64_t width, float *out, const int64_t *out_strides, float *log_sum, int64_t first,
           int64_t count) {
    float *room = aligned_alloc(64, up_to(4 * QUERIES * (times + 2 * width), 64));
    if (!room) return 0;
    for (int64_t i = first; i < first + count; i++) {
        const int64_t n = i / heads, h = i % heads, from = n * strides[0] + h * strides[1];
        attend_one(q + from, k + from, v + from, strides[2], bias + n * times, times, width,
                   out + n * out_strides[0] + h * out_strides[1], out_strides[2], log_sum ? log_sum + i * times : 0,
                   room);
    }
    free(room);
    return 1;
}

/* x + last(attention(in(norm(x)))) of utterances (times, columns), to out; bias (utterances, times). */
int attention(const float *x, const Norm *norm, const Matrix *in, const Matrix *last, int64_t heads, const float *bias,
              float tiny, float top, float *out, int64_t utterances, int64_t times) {
    const int64_t columns = in->inputs, width = columns / heads, wide = in->outputs;
    char *room = aligned_alloc(64, bytes_of_rows(columns) + 4 * (up_to(times * wide, 16) + up_to(times * columns, 16) +
                                                                 QUERIES * (times + 2 * width)));
    char *place = room;
    if (!room) return 0;
    Rows b = rows_at(&place, columns, tiny, top);
    float *projected = take(&place, times * wide), *mixed = take(&place, times * columns);
    float *scores = take(&place, 0);
    for (int64_t n = 0; n < utterances; n++, x += times * columns, out += times * columns, bias += times) {
        for (int64_t i = 0; i < times; i += AT_ONCE)
            linear_rows(x + i * columns, columns, LEAST(times - i, AT_ONCE), norm, in, &b, 0, 1.0f,
                        projected + i * wide, wide);
        for (int64_t h = 0; h < heads; h++) {
            const float *q = projected + h * width;
            attend_one(q, q + columns, q + 2 * columns, wide, bias, times, width, mixed + h * width, columns, 0,
                       scores);
        }
        for (int64_t i = 0; i < times; i += AT_ONCE) {
            const int64_t some = LEAST(times - i, AT_ONCE);
            linear_rows(mixed + i * columns, columns, some, 0, last, &b, x + i * columns, 1.0f, out + i * columns,
                        columns);
        }
    }
    free(room);
    return 1;
}

/* A convolution of each channel by itself, and what normalizes and what stretches it afterwards. */
typedef struct {
    const float *codes; /* (taps, channels) */
    const float *scale, *bias, *gain, *offset;
    int64_t taps, before; /* zeros before the first frame */
} Depthwise;

/* Rows (times, channels) to codes, as floats, of a scale for each channel; both may be the same rows. */
static void round_channels(const float *x, int64_t times, int64_t channels, float tiny, float top, float *codes,
                           float *each) {
    for (int64_t c = 0; c < channels; c += VECTOR) {
        const __mmask16 kept = first_lanes(channels - c);
        __m512i most = _mm512_castps_si512(_mm512_set1_ps(tiny));
        for (int64_t t = 0; t < times; t++) most = larger(most, _mm512_maskz_loadu_ps(kept, x + t * channels + c));
        const __m512 scale = _mm512_div_ps(_mm512_castsi512_ps(most), _mm512_set1_ps(top)),
                     by = _mm512_div_ps(_mm512_set1_ps(1.0f), scale);
        _mm512_mask_storeu_ps(each + c, kept, scale);
        for (int64_t t = 0; t < times; t++) {
            const __m512 some = _mm512_maskz_loadu_ps(kept, x + t * channels + c), quotient = _mm512_mul_ps(some, by);
            const __m512 exact = _mm512_fmadd_ps(_mm512_fnmadd_ps(quotient, scale, some), by, quotient);
            _mm512_mask_storeu_ps(codes + t * channels + c, kept, _mm512_roundscale_ps(exact, 0));
        }
    }
}

/* Frame t of the codes of an utterance convolved, scaled, normalized and put through SiLU. */
static inline void depthwise_one(const float *codes, const float *each, const Depthwise *d, int64_t channels,
                                 float *out) {
    for (int64_t c = 0; c < channels; c += VECTOR) {
        const __mmask16 kept = first_lanes(channels - c);
        __m512 sum = _mm512_setzero_ps();
        for (int64_t k = 0; k < d->taps; k++)
            sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(kept, d->codes + k * channels + c),
                                  _mm512_maskz_loadu_ps(kept, codes + k * channels + c), sum);
        const __m512 scaled = _mm512_mul_ps(sum, _mm512_maskz_loadu_ps(kept, d->scale + c));
        const __m512 bias = d->bias ? _mm512_maskz_loadu_ps(kept, d->bias + c) : _mm512_setzero_ps();
        const __m512 result = _mm512_fmadd_ps(scaled, _mm512_maskz_loadu_ps(kept, each + c), bias);
        const __m512 normed = _mm512_fmadd_ps(result, _mm512_maskz_loadu_ps(kept, d->gain + c),
                                              _mm512_maskz_loadu_ps(kept, d->offset + c));
        _mm512_mask_storeu_ps(out + c, kept, _mm512_mul_ps(normed, sigmoid_of(normed)));
    }
}

/* x + last(depthwise(mask * glu(in(norm(x))))) of utterances (times, columns), to out; mask (utterances, times). */
int convolution(const float *x, const Norm *norm, const Matrix *in, const Depthwise *d, const Matrix *last,
                const float *mask, float tiny, float top, float *out, int64_t utterances, int64_t times) {
    const int64_t columns = in->inputs, channels = in->outputs / 2, longest = MOST(columns, channels);
    char *room =
        aligned_alloc(64, bytes_of_rows(longest) + 4 * (up_to((times + d->taps) * channels, 16) +
                                                        AT_ONCE * 2 * up_to(channels, 16) + up_to(channels, 16)));
    char *place = room;
    if (!room) return 0;
    Rows b = rows_at(&place, longest, tiny, top);
    float *padded = take(&place, (times + d->taps) * channels), *some_rows = take(&place, AT_ONCE * 2 * channels);
    float *each = take(&place, channels), *gated = padded + d->before * channels;
    memset(padded, 0, d->before * channels * sizeof *padded);
    memset(gated + times * channels, 0, (d->taps - d->before) * channels * sizeof *padded);
    for (int64_t n = 0; n < utterances; n++, x += times * columns, out += times * columns, mask += times) {
        for (int64_t i = 0; i < times; i += AT_ONCE) {
            const int64_t some = LEAST(times - i, AT_ONCE);
            linear_rows(x + i * columns, columns, some, norm, in, &b, 0, 1.0f, some_rows, 2 * channels);
            for (int64_t r = 0; r < some; r++)
                gate_one(some_rows + 2 * r * channels, mask[i + r], gated + (i + r) * channels, channels);
        }
        round_channels(gated, times, channels, tiny, top, gated, each);
        for (int64_t i = 0; i < times; i += AT_ONCE) {
            const int64_t some = LEAST(times - i, AT_ONCE);
            for (int64_t r = 0; r < some; r++)
                depthwise_one(padded + (i + r) * channels, each, d, channels, some_rows + r * channels);
            linear_rows(some_rows, channels, some, 0, last, &b, x + i * columns, 1.0f, out + i * columns, columns);
        }
    }
    free(room);
    return 1;
}
#endif
