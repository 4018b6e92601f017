/* Products of integers, with the rounding before and the scaling behind, a few rows at a time, so that what is between
 * stays in the processor's cache; see panels.py. Rounding and scaling are those of kernels.c, and so are the numbers: a
 * row's do not depend on the rows beside it. For processors with AVX512-VNNI.
 */
#include "kernels.c"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define FUSED
#include <immintrin.h>
#include <stdlib.h>

#define VECTOR 16  /* floats, or groups of four codes */
#define WIDE 3     /* vectors of columns that a tile has */
#define TALL 8     /* rows of a tile: with WIDE they fill the registers */
#define AT_ONCE 48 /* rows between two steps; a multiple of TALL */
#define INLINE static inline __attribute__((always_inline))
#define MOST(a, b) ((a) > (b) ? (a) : (b))
#define LEAST(a, b) ((a) < (b) ? (a) : (b))

/* A quantized matrix (outputs, inputs) with a scale for each row, its codes as `pack_panels` lays them. */
typedef struct {
    const uint8_t *panels;
    const float *scale, *bias; /* (outputs) each; without a bias 0 */
    int64_t outputs, inputs;
} Matrix;

static inline int64_t up_to(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

static inline __mmask16 first_lanes(int64_t count) {
    return count >= VECTOR ? 0xffff : (__mmask16)((1u << (count < 0 ? 0 : count)) - 1);
}

/* Codes (outputs, inputs) plus 128, in the order in which `product` reads them: vectors of 16 outputs by 4 inputs, the
 * inputs of WIDE vectors after each other. What fills up is 0. */
void pack_panels(const int8_t *codes, int64_t outputs, int64_t inputs, uint8_t *panels) {
    const int64_t vectors = up_to(outputs, VECTOR) / VECTOR, fours = up_to(inputs, 4) / 4, whole = inputs / 4;
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i rows = _mm512_mullo_epi32(lanes, _mm512_set1_epi32((int32_t)inputs));
    const __m512i sign = _mm512_set1_epi32((int32_t)0x80808080);
    for (int64_t first = 0; first < vectors; first += WIDE) {
        const int64_t wide = LEAST(vectors - first, WIDE);
        for (int64_t v = 0; v < wide; v++) {
            const int64_t row = (first + v) * VECTOR;
            const __mmask16 kept = first_lanes(outputs - row);
            uint8_t *place = panels + (first * fours + v) * 64;
            const int8_t *from = codes + row * inputs;
            for (int64_t f = 0; f < whole; f++, place += 64 * wide) {
                const __m512i some = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), kept, rows, from + 4 * f, 1);
                _mm512_storeu_si512(place, _mm512_xor_si512(some, sign));
            }
            if (whole < fours) {
                int32_t last[VECTOR] = {0};
                for (int64_t c = 0; c < VECTOR && row + c < outputs; c++)
                    memcpy(last + c, from + c * inputs + 4 * whole, inputs - 4 * whole);
                _mm512_storeu_si512(place, _mm512_xor_si512(_mm512_loadu_si512(last), sign));
            }
        }
    }
}

/* out = bias + each * (scale * (codes . matrix)) for TALL rows, of which `rows` are wanted, and `wide` vectors of
 * columns. The weights are 128 more than they are, so that they have no sign, which is what the processor multiplies
 * numbers with a sign by; `sums` are those of the rows' codes. With rows to be added `onto`, as far apart as those of
 * out, they are added to `factor` times that. */
#define EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) /* by name: arrays would not stay in registers */
/* _mm512_dpbusd_epi32, which GCC 12 does not keep in one register */
#define ADD_PRODUCTS(total, weights, row) __asm__("vpdpbusd %2, %1, %0" : "+v"(total) : "v"(weights), "v"(row))
#define BEGIN(r) __m512i a##r = _mm512_set1_epi32((int32_t)(-128u * (uint32_t)sums[r])), b##r = a##r, c##r = a##r;
#define ADD(r) \
    memcpy(&four, codes + r * stride + 4 * f, 4); \
    row = _mm512_set1_epi32(four); \
    ADD_PRODUCTS(a##r, weights_a, row); \
    if (wide > 1) ADD_PRODUCTS(b##r, weights_b, row); \
    if (wide > 2) ADD_PRODUCTS(c##r, weights_c, row);
#define SCALE(r, v) \
    if (r < rows) { \
        const __m512 bias = from ? _mm512_maskz_loadu_ps(kept, from + r * bias_stride) : _mm512_setzero_ps(); \
        const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(v##r), scale); \
        __m512 result = _mm512_fmadd_ps(scaled, _mm512_set1_ps(each[r]), bias); \
        if (onto) \
            result = _mm512_fmadd_ps(_mm512_set1_ps(factor), result, \
                                     _mm512_maskz_loadu_ps(kept, onto + at + r * out_stride)); \
        _mm512_mask_storeu_ps(to + r * out_stride, kept, result); \
    }
#define SCALE_A(r) SCALE(r, a)
#define SCALE_B(r) SCALE(r, b)
#define SCALE_C(r) SCALE(r, c)
#define STORE(n, DO) \
    if (wide > n) { \
        const int64_t at = column + VECTOR * n; \
        const __mmask16 kept = first_lanes(m->outputs - at); \
        const __m512 scale = _mm512_maskz_loadu_ps(kept, m->scale + at); \
        const float *from = bias_rows ? bias_rows + at : 0; \
        float *to = out + at; \
        EACH_ROW(DO) \
    }
INLINE void tile(const int wide, const int8_t *codes, int64_t stride, const int32_t *sums, const float *each,
                 int64_t rows, const uint8_t *panel, const Matrix *m, const float *bias_rows, int64_t bias_stride,
                 int64_t column, const float *onto, float factor, float *out, int64_t out_stride) {
    const int64_t fours = up_to(m->inputs, 4) / 4;
    EACH_ROW(BEGIN)
    for (int64_t f = 0; f < fours; f++, panel += 64 * wide) {
        const __m512i weights_a = _mm512_loadu_si512(panel);
        const __m512i weights_b = wide > 1 ? _mm512_loadu_si512(panel + 64) : weights_a;
        const __m512i weights_c = wide > 2 ? _mm512_loadu_si512(panel + 128) : weights_a;
        __m512i row;
        int32_t four;
        EACH_ROW(ADD)
    }
    STORE(0, SCALE_A)
    STORE(1, SCALE_B)
    STORE(2, SCALE_C)
}

/* A few rows between two products. */
typedef struct {
    float *normed; /* a row */
    int8_t *codes; /* (AT_ONCE, stride), whole vectors */
    int64_t stride;
    float tiny, top, each[AT_ONCE];
    int32_t sums[AT_ONCE];
} Rows;

/* A few rows by a matrix, plus a bias, or one for each row, `bias_stride` apart, to rows of floats; see `tile` for rows
 * to be added `onto`. */
static void product(const Rows *b, int64_t rows, const Matrix *m, const float *bias, int64_t bias_stride,
                    const float *onto, float factor, float *out, int64_t out_stride) {
    const int64_t vectors = up_to(m->outputs, VECTOR) / VECTOR, fours = up_to(m->inputs, 4) / 4;
    for (int64_t first = 0; first < vectors; first += WIDE) {
        const uint8_t *panel = m->panels + first * fours * 64;
        const int64_t wide = vectors - first, column = first * VECTOR;
        for (int64_t i = 0; i < rows; i += TALL) {
            const int8_t *codes = b->codes + i * b->stride;
            const int32_t *sums = b->sums + i;
            const float *each = b->each + i, *added = bias ? bias + i * bias_stride : 0;
            const float *sum = onto ? onto + i * out_stride : 0;
            float *to = out + i * out_stride;
            if (wide >= 3)
                tile(3, codes, b->stride, sums, each, rows - i, panel, m, added, bias_stride, column, sum, factor, to,
                     out_stride);
            else if (wide == 2)
                tile(2, codes, b->stride, sums, each, rows - i, panel, m, added, bias_stride, column, sum, factor, to,
                     out_stride);
            else
                tile(1, codes, b->stride, sums, each, rows - i, panel, m, added, bias_stride, column, sum, factor, to,
                     out_stride);
        }
    }
}

static inline __m512i larger(__m512i most, __m512 x) {
    return _mm512_max_epi32(most, _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff)));
}

static inline __m512i code_of(__m512 x, __m512 scale, __m512 reciprocal) {
    const __m512 quotient = _mm512_mul_ps(x, reciprocal), rest = _mm512_fnmadd_ps(quotient, scale, x);
    return _mm512_cvtps_epi32(_mm512_fmadd_ps(rest, reciprocal, quotient));
}

INLINE void round_vector(__m512 x, float tiny, float top, int8_t *codes, float *each, int32_t *sum) {
    const float scale = scale_of(_mm512_reduce_max_epi32(larger(_mm512_setzero_si512(), x)), tiny, top);
    const __m512i code = code_of(x, _mm512_set1_ps(scale), _mm512_set1_ps(1.0f / scale));
    _mm_storeu_si128((__m128i *)codes, _mm512_cvtepi32_epi8(code));
    *each = scale;
    *sum = _mm512_reduce_add_epi32(code);
}

/* A row of `parts` places of `run` numbers each to codes, as round_row in kernels.c; its scale, and the sum of its
 * codes. */
INLINE void round_parts(const float *const *x, const int64_t parts, int64_t run, float tiny, float top, int8_t *codes,
                        float *each, int32_t *sum) {
    __m512i most = _mm512_setzero_si512(), added = _mm512_setzero_si512();
    for (int64_t a = 0; a < parts; a++)
        for (int64_t j = 0; j < run; j += VECTOR)
            most = larger(most, _mm512_maskz_loadu_ps(first_lanes(run - j), x[a] + j));
    const float scale = scale_of(_mm512_reduce_max_epi32(most), tiny, top);
    const __m512 by = _mm512_set1_ps(scale), one_by = _mm512_set1_ps(1.0f / scale);
    for (int64_t a = 0; a < parts; a++, codes += run)
        for (int64_t j = 0; j < run; j += VECTOR) {
            const __mmask16 kept = first_lanes(run - j);
            const __m512i code = code_of(_mm512_maskz_loadu_ps(kept, x[a] + j), by, one_by);
            added = _mm512_add_epi32(added, code);
            if (parts > 1)
                _mm_mask_storeu_epi8(codes + j, kept, _mm512_cvtepi32_epi8(code));
            else /* and what fills up a row, where a longer one may have stood */
                _mm_storeu_si128((__m128i *)(codes + j), _mm512_cvtepi32_epi8(code));
        }
    *each = scale;
    *sum = _mm512_reduce_add_epi32(added);
}

/* A row of floats to row r. */
static inline void round_one(const float *x, int64_t columns, Rows *b, int64_t r) {
    round_parts(&x, 1, columns, b->tiny, b->top, b->codes + r * b->stride, b->each + r, b->sums + r);
}

/* Room for so many floats and for rows of codes, from *place on. */
static float *take(char **place, int64_t floats) {
    float *found = (float *)*place;
    *place += up_to(4 * floats, 64);
    return found;
}

static int64_t bytes_of_rows(int64_t columns) { return (4 + AT_ONCE) * up_to(columns, 64); }

static Rows rows_at(char **place, int64_t columns, float tiny, float top) {
    Rows b = {.stride = up_to(columns, 64), .tiny = tiny, .top = top, .each = {0}, .sums = {0}};
    b.normed = take(place, b.stride);
    b.codes = (int8_t *)*place;
    memset(b.codes, 0, AT_ONCE * b.stride); /* what fills up rows stays 0 */
    *place += AT_ONCE * b.stride;
    return b;
}

/* Rows first to first + count of codes (rows, inputs), with a scale each, by a matrix, plus a bias, or one for each
 * row, `bias_stride` apart, to out. All functions from here on return whether there was memory enough. */
int multiply(const int8_t *codes, const float *each, const Matrix *m, const float *bias, int64_t bias_stride,
             float *out, int64_t out_stride, int64_t first, int64_t count) {
    char *room = aligned_alloc(64, bytes_of_rows(m->inputs)), *place = room;
    if (!room) return 0;
    Rows b = rows_at(&place, m->inputs, 0, 0);
    const __m512i ones = _mm512_set1_epi8(1);
    for (int64_t i = first; i < first + count; i += AT_ONCE) {
        const int64_t some = LEAST(first + count - i, AT_ONCE);
        for (int64_t r = 0; r < some; r++) {
            int8_t *row = b.codes + r * b.stride;
            memcpy(row, codes + (i + r) * m->inputs, m->inputs);
            __m512i sum = _mm512_setzero_si512();
            for (int64_t j = 0; j < m->inputs; j += 64)
                sum = _mm512_dpbusd_epi32(sum, ones, _mm512_loadu_si512(row + j));
            b.sums[r] = _mm512_reduce_add_epi32(sum);
            b.each[r] = each[i + r];
        }
        product(&b, some, m, bias ? bias + i * bias_stride : 0, bias_stride, 0, 1.0f, out + i * out_stride, out_stride);
    }
    free(room);
    return 1;
}

/* What a convolution over two dimensions slides over: x (utterances, high, wide, channels), windows of taps[0] *
 * taps[1], so many of size[0] * size[1] an utterance, `step` apart, whose places are `apart` and which begin at
 * -before. */
typedef struct {
    int64_t high, wide, channels, taps[2], size[2], step[2], apart[2], before[2];
} Windows;

/* Where the lines are of the window whose corner is at (top, left) of an utterance: what is outside is filled up in
 * `room`. */
static void window_at(const float *utterance, const Windows *w, int64_t top, int64_t left, float *room,
                      const float **lines) {
    const int64_t channels = w->channels, run = w->taps[1] * channels;
    const int whole = left >= 0 && left + w->taps[1] <= w->wide && w->apart[1] == 1;
    for (int64_t a = 0; a < w->taps[0]; a++, room += run) {
        const int64_t y = top + a * w->apart[0];
        const float *line = utterance + y * w->wide * channels;
        const int inside = y >= 0 && y < w->high;
        lines[a] = inside && whole ? line + left * channels : room;
        if (inside && whole) continue;
        for (int64_t b = 0; b < w->taps[1]; b++) {
            const int64_t z = left + b * w->apart[1];
            if (inside && z >= 0 && z < w->wide)
                memcpy(room + b * channels, line + z * channels, channels * sizeof *room);
            else
                memset(room + b * channels, 0, channels * sizeof *room);
        }
    }
}

/* The convolution of windows first to first + count, rounded with a scale each, to rows of out; at least `least`. */
int convolve(const float *x, const Windows *w, const Matrix *m, float tiny, float top, float least, float *out,
             int64_t first, int64_t count) {
    const int64_t inputs = m->inputs, outputs = m->outputs, per = w->size[0] * w->size[1],
                  run = w->taps[1] * w->channels;
    char *room = aligned_alloc(64, bytes_of_rows(inputs) + up_to(sizeof(float *) * w->taps[0], 64)), *place = room;
    if (!room) return 0;
    Rows b = rows_at(&place, inputs, tiny, top);
    const float **lines = (const float **)place;
    const __m512 floor = _mm512_set1_ps(least);
    const __mmask16 places = first_lanes(inputs);
    int32_t offsets[VECTOR] = {0}; /* of the numbers of a small window from its corner */
    for (int64_t j = 0; inputs <= VECTOR && j < inputs; j++)
        offsets[j] = (int32_t)(j / run * w->apart[0] * w->wide * w->channels +
                               j % run / w->channels * w->apart[1] * w->channels + j % w->channels);
    const __m512i at = _mm512_loadu_si512(offsets);
    const int64_t last_top = w->high - (w->taps[0] - 1) * w->apart[0],
                  last_left = w->wide - (w->taps[1] - 1) * w->apart[1];
    int64_t n = first / per, down = first % per / w->size[1], along = first % w->size[1];
    for (int64_t i = first; i < first + count; i += AT_ONCE) {
        const int64_t some = LEAST(first + count - i, AT_ONCE);
        for (int64_t r = 0; r < some; r++) {
            const int64_t above = down * w->step[0] - w->before[0], left = along * w->step[1] - w->before[1];
            const float *utterance = x + n * w->high * w->wide * w->channels;
            if (inputs <= VECTOR && above >= 0 && above < last_top && left >= 0 && left < last_left) {
                const float *corner = utterance + (above * w->wide + left) * w->channels;
                const __m512 window = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), places, at, corner, 4);
                round_vector(window, tiny, top, b.codes + r * b.stride, b.each + r, b.sums + r);
            } else {
                window_at(utterance, w, above, left, b.normed, lines);
                round_parts(lines, w->taps[0], run, tiny, top, b.codes + r * b.stride, b.each + r, b.sums + r);
            }
            if (++along < w->size[1]) continue;
            along = 0;
            if (++down == w->size[0]) down = 0, n++;
        }
        product(&b, some, m, m->bias, 0, 0, 1.0f, out + i * outputs, outputs);
        if (least == -INFINITY) continue;
        for (float *j = out + i * outputs; j < out + (i + some) * outputs; j += VECTOR) {
            const __mmask16 kept = first_lanes(out + (i + some) * outputs - j);
            _mm512_mask_storeu_ps(j, kept, _mm512_max_ps(floor, _mm512_maskz_loadu_ps(kept, j))); /* NaN stay */
        }
    }
    free(room);
    return 1;
}
#endif
