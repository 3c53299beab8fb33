// A binary 3x3 convolution with everything that a unit does around it: signs in, floats and the next signs out.
//
// Compiled for one of three instruction sets (AVX-512, AVX2, or whatever the compiler's default is) from the same code:
// only the few helpers under "Instructions" differ. bbcu/deploy/native.py compiles, loads and calls it.
//
// How it counts, by looking up. A product of two signs is -1 where their bits differ, so that a sum of n products is
// n - 2 m with m mismatches. Four input channels of one tap are a nibble of the pixel and a nibble of the weights. The
// table below has a row of 16 bytes for every pair of nibbles (a, b) of two horizontally adjacent pixels:
//
//     row(a, b)[w] = mismatches(a, w) | mismatches(b, w) << 4          w: the nibble of the weights, 0 to 15
//
// A byte shuffle with the weights' nibbles of 16 or 32 output channels as its indices looks up as many counts at once,
// each for two pixels. So a shuffle of 32 bytes does the work of 256 multiply-adds, and nothing needs to be summed
// across a vector. The three horizontal taps are added as they are (at most 12 of the 15 that half a byte holds). Over
// the input channels, two sums modulo 256 are kept for each byte: of the whole byte, and of the 16-bit lane shifted right
// by four. From these, the counts of both pixels follow exactly (see `recover`), as long as they stay below 256.
//
// With AVX-512 and its population counts, the bits that differ are counted one word of 32 channels at a time instead.
//
// Padding has a nibble of its own, PAD, that mismatches half of everything: it counts as zero, and borders are no
// special case. Channels that do not exist (if their number is no multiple of eight) match, which is subtracted at the
// end.
//
// Layouts. Floats are NHWC. Bits are a byte for eight channels, the first channel in the lowest bit. Filters are in
// `parts`: an upsampling unit has ratio * ratio of them, each of which writes one of the pixels that a pixel becomes.

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <type_traits>
#include <vector>

#include <unistd.h>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

// --- Instructions ----------------------------------------------------------------------------------------------------

constexpr int LANES = 8;  // floats in a vector
#if defined(__AVX2__)
constexpr int N = 32;  // bytes in a vector
#else
constexpr int N = 16;
#endif

typedef uint8_t Bytes __attribute__((vector_size(N), may_alias, aligned(1)));
typedef uint16_t Shorts __attribute__((vector_size(N), may_alias, aligned(1)));
typedef float Floats __attribute__((vector_size(4 * LANES), may_alias, aligned(4)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef int32_t UnalignedInts __attribute__((vector_size(4 * LANES), may_alias, aligned(4)));

// A row of the table in every 16 bytes of a vector, and its bytes looked up by indices from 0 to 15.
struct Table {
#if defined(__AVX2__)
    __m256i row;
    explicit Table(const uint8_t* from)
        : row(_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))) {}
    Bytes operator[](Bytes index) const { return (Bytes)_mm256_shuffle_epi8(row, (__m256i)index); }
#elif defined(__aarch64__)
    uint8x16_t row;
    explicit Table(const uint8_t* from) : row(vld1q_u8(from)) {}
    Bytes operator[](Bytes index) const { return (Bytes)vqtbl1q_u8(row, (uint8x16_t)index); }
#else
    const uint8_t* row;
    explicit Table(const uint8_t* from) : row(from) {}
    Bytes operator[](Bytes index) const {
        Bytes found;
        for (int i = 0; i < N; ++i) found[i] = row[index[i]];
        return found;
    }
#endif
};

// Keep the compiler from computing this value later or in another order, for which the registers would not suffice.
inline Bytes computed_now(Bytes value) {
#if defined(__AVX2__)
    asm("" : "+x"(value));
#endif
    return value;
}

// Eight counts as 32-bit integers.
inline Ints widened(const uint16_t* from) {
#if defined(__AVX2__)
    return (Ints)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
    Ints result;
    for (int i = 0; i < LANES; ++i) result[i] = from[i];
    return result;
#endif
}

// One bit for each of eight floats that is at least its threshold.
inline uint8_t at_least(Floats value, Floats threshold) {
#if defined(__AVX2__)
    return static_cast<uint8_t>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)value, (__m256)threshold, _CMP_GE_OQ)));
#else
    uint8_t bits = 0;
    for (int i = 0; i < LANES; ++i) bits |= static_cast<uint8_t>((value[i] >= threshold[i]) << i);
    return bits;
#endif
}

// value * factor + shift, rounded once.
inline Floats fused(Floats value, Floats factor, Floats shift) {
#if defined(__AVX2__)
    return (Floats)_mm256_fmadd_ps((__m256)value, (__m256)factor, (__m256)shift);
#else
    Floats result;
    for (int i = 0; i < LANES; ++i) result[i] = std::fma(value[i], factor[i], shift[i]);
    return result;
#endif
}

[[maybe_unused]] inline Ints widened(const int32_t* from) { return *reinterpret_cast<const UnalignedInts*>(from); }

// Transpose eight rows of eight floats.
inline void transpose_square(const float* from, int64_t stride, float* to, int64_t to_stride) {
#if defined(__AVX2__)
    __m256 row[8], pairs[8], fours[8];
    for (int i = 0; i < 8; ++i) row[i] = _mm256_loadu_ps(from + i * stride);
    for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; ++j) {
            fours[i + 2 * j] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0x44);
            fours[i + 2 * j + 1] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0xee);
        }
    for (int i = 0; i < 4; ++i) {
        _mm256_storeu_ps(to + i * to_stride, _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20));
        _mm256_storeu_ps(to + (i + 4) * to_stride, _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31));
    }
#else
    for (int i = 0; i < LANES; ++i)
        for (int j = 0; j < LANES; ++j) to[j * to_stride + i] = from[i * stride + j];
#endif
}

inline Floats load(const float* from) { return *reinterpret_cast<const Floats*>(from); }
inline void store(float* to, Floats value) { *reinterpret_cast<Floats*>(to) = value; }
inline Floats all(float value) { return Floats{value, value, value, value, value, value, value, value}; }

// --- The table -------------------------------------------------------------------------------------------------------

constexpr int ROW = 16, PAD = 16, NIBBLES = 17;

constexpr std::array<uint8_t, NIBBLES * NIBBLES * ROW> make_table() {
    std::array<uint8_t, NIBBLES * NIBBLES * ROW> table{};
    for (int b = 0; b < NIBBLES; ++b)
        for (int a = 0; a < NIBBLES; ++a)
            for (int w = 0; w < ROW; ++w) {
                const int first = a == PAD ? 2 : __builtin_popcount(a ^ w);
                const int second = b == PAD ? 2 : __builtin_popcount(b ^ w);
                table[(b * NIBBLES + a) * ROW + w] = static_cast<uint8_t>(first | second << 4);
            }
    return table;
}

alignas(64) constexpr auto TABLE = make_table();

// --- Threads ---------------------------------------------------------------------------------------------------------

// Threads that wait for work. A process that was forked has none of its parent's, and gets a pool of its own; pools are
// never destroyed, since their threads may outlive everything else.
struct Pool {
    const pid_t owner = getpid();
    std::mutex caller, state;
    std::condition_variable wake, done;
    const std::function<void()>* work = nullptr;
    int64_t round = 0;
    int wanted = 0, running = 0, count = 0;

    // Fewer start where the system refuses more.
    void start_until(int threads) {
        try {
            for (; count < threads; ++count) std::thread([this, index = count] { loop(index); }).detach();
        } catch (const std::system_error&) {
        }
    }

    void loop(int index) {
        int64_t seen = 0;
        std::unique_lock<std::mutex> lock(state);
        for (;;) {
            wake.wait(lock, [&] { return round != seen; });
            seen = round;
            if (index >= wanted) continue;
            lock.unlock();
            (*work)();
            lock.lock();
            if (--running == 0) done.notify_one();
        }
    }

    // An exception of the job ends the process: others may still be at work on it.
    void run(int helpers, const std::function<void()>& job) noexcept {
        std::unique_lock<std::mutex> lock(state);
        start_until(helpers);
        work = &job;
        wanted = running = std::min(helpers, count);
        ++round;
        wake.notify_all();
        lock.unlock();
        job();
        lock.lock();
        done.wait(lock, [&] { return running == 0; });
    }
};

Pool& pool() {
    static std::atomic<Pool*> current{nullptr};
    Pool* found = current.load();
    while (found == nullptr || found->owner != getpid()) {
        Pool* created = new Pool;
        if (current.compare_exchange_strong(found, created)) return *created;
        delete created;
    }
    return *found;
}

// Call `task(first, last)` for ranges that cover 0 to `count`, on this thread and others. The ranges are short, so that
// a thread that is held up leaves its share to the rest. A second caller at the same time works alone.
void in_parallel(int64_t count, int64_t shortest, int threads, const std::function<void(int64_t, int64_t)>& task) {
    const int64_t useful = std::min<int64_t>(threads, (count + shortest - 1) / shortest);
    Pool* helpers = useful > 1 ? &pool() : nullptr;
    std::unique_lock<std::mutex> lock;
    if (helpers != nullptr) lock = std::unique_lock<std::mutex>(helpers->caller, std::try_to_lock);
    if (!lock.owns_lock()) {
        task(0, count);
        return;
    }
    const int64_t length = std::max(shortest, count / (useful * 4));
    std::atomic<int64_t> next{0};
    helpers->run(static_cast<int>(useful) - 1, [&] {
        for (int64_t first; (first = next.fetch_add(length)) < count;) task(first, std::min(first + length, count));
    });
}

// --- The unit --------------------------------------------------------------------------------------------------------

enum Activation : int32_t { NONE, PRELU, HARDTANH };

constexpr int TAPS = 3, PIXELS = 4;  // pixels of the output in one step
constexpr int CHUNK = 16;            // nibbles between two recoveries: 16 * 12 mismatches are less than 256

int64_t bytes_of(int64_t channels) { return (channels + 7) / 8; }

// Output channels are computed in blocks of 64, or of 32 where no more are left.
int64_t padded(int64_t channels) { return (channels + 31) / 32 * 32; }

}  // namespace

extern "C" {

// The numbers that a unit may have for each output channel, in the order in which they are used. Eight channels of all
// of them lie together, so that one pointer reaches them; each part is padded to blocks.
enum Number { SCALE, BIAS, POST_FACTOR, POST_SHIFT, SHIFT_IN, SLOPE, SHIFT_OUT, OUT_FACTOR, OUT_SHIFT, NUMBERS };

// A unit, as native.py fills it in. `has` has a bit for each number; a step whose numbers are missing is left out.
struct Unit {
    int64_t in_channels, out_channels, ratio;  // out_channels: of one part
    const uint8_t* weights;
    const float* numbers;
    int32_t has, post_fused, out_fused, activation, activation_after;
    float gain, residual_scale;  // of the scaled sums, and of the residual; 1: none
    float leaky;                 // slope of a leaky ReLU at the end; 1: none
};

// The signs that come next: 1 where a value is at least its threshold, and the opposite where `flip` has a bit. There are
// thresholds for whole bytes of channels.
struct Signs {
    const float* threshold;
    const uint8_t* flip;
    uint8_t* bits;
};

}  // extern "C"

namespace {

// Add the counts of two pixels in N output channels to `first` and `second`, or set them if they are the first. For a
// 16-bit lane of two channels e and o, with the counts e1, o1 of the first pixel and e2, o2 of the second,
//     total   = (e1 + 16 e2) mod 256 | (o1 + 16 o2) mod 256 << 8
//     shifted = (e2 + 16 o1) mod 256 |  o2                  << 8
inline void recover(Bytes total, Bytes shifted, bool is_first, uint16_t* first, uint16_t* second) {
    const auto t = (Shorts)total, h = (Shorts)shifted;
    const Shorts o2 = h >> 8;
    const Shorts o1 = ((t >> 8) - (o2 << 4)) & 255;
    const Shorts e2 = (h - (o1 << 4)) & 255;
    const Shorts e1 = (t - (e2 << 4)) & 255;
    auto add = [&](uint16_t* to, Shorts count) {
        auto& sum = *reinterpret_cast<Shorts*>(to);
        sum = is_first ? count : sum + count;
    };
    add(first, e1);
    add(first + N / 2, o1);
    add(second, e2);
    add(second + N / 2, o2);
}

// Count the mismatches of four pixels in V vectors of output channels. `rows` are the offsets into the table of three
// rows of the input, from the pair that starts one pixel to the left; `counts` is [PIXELS][V * N]. FIXED is the number of
// nibbles, or 0 if it is not known. Not inlined: the compiler would keep other numbers in the registers that the sums
// need, and adding to memory is slow.
template <int V, int FIXED>
[[gnu::noinline]] void count_mismatches(const uint16_t* const* rows, const uint8_t* indices, int nibbles,
                                        uint16_t* counts) {
    if (FIXED) nibbles = FIXED;
    for (int dy = 0; dy < TAPS; ++dy) {
        const uint16_t* row = rows[dy];
        for (int start = 0; start < nibbles; start += CHUNK) {
            Bytes total[2][V] = {}, shifted[2][V] = {};
            const int end = std::min(nibbles, start + CHUNK);
            for (int nibble = start; nibble < end; ++nibble) {
                Bytes taps[2][V];
#pragma GCC unroll 3
                for (int dx = 0; dx < TAPS; ++dx) {
                    const Table left(TABLE.data() + row[dx * nibbles + nibble]);
                    const Table right(TABLE.data() + row[(dx + 2) * nibbles + nibble]);
#pragma GCC unroll 4
                    for (int v = 0; v < V; ++v, indices += N) {
                        const Bytes index = *reinterpret_cast<const Bytes*>(indices);
                        taps[0][v] = computed_now(dx ? taps[0][v] + left[index] : left[index]);
                        taps[1][v] = computed_now(dx ? taps[1][v] + right[index] : right[index]);
                    }
                }
#pragma GCC unroll 2
                for (int pair = 0; pair < 2; ++pair)
#pragma GCC unroll 4
                    for (int v = 0; v < V; ++v) {
                        total[pair][v] += taps[pair][v];
                        shifted[pair][v] += (Bytes)((Shorts)taps[pair][v] >> 4);
                    }
            }
            for (int pair = 0; pair < 2; ++pair)
                for (int v = 0; v < V; ++v) {
                    uint16_t* first = counts + (2 * pair * V + v) * N;
                    recover(total[pair][v], shifted[pair][v], dy == 0 && start == 0, first, first + V * N);
                }
        }
    }
}

// The three rows of the input around a row of the output: their bits, null outside of the image, and their offsets.
struct Rows {
    const uint8_t* bits[TAPS];
    const uint16_t* offsets[TAPS];
};

// Counts by looking up, V vectors of output channels at once.
template <int V, int FIXED> struct Lookup {
    using Count = uint16_t;
    static constexpr int BLOCK = V * N;

    static void count(const Rows& rows, int64_t x, int64_t, const uint8_t* indices, int64_t nibbles, Count* counts) {
        const uint16_t* from[TAPS];
        for (int dy = 0; dy < TAPS; ++dy) from[dy] = rows.offsets[dy] + x * nibbles;
        count_mismatches<V, FIXED>(from, indices, static_cast<int>(nibbles), counts);
    }
};

#if defined(__AVX512VPOPCNTDQ__)
// Counts by population counts, where the CPU has them for vectors: 32 input channels of 16 filters in one instruction.
// Weights are in words of 32 bits, [BLOCK / 16][9][words][16].
template <int CHANNELS> struct Popcount {
    using Count = int32_t;
    static constexpr int BLOCK = CHANNELS, FILTERS = 16, WORD = 32;

    // The counts of P adjacent pixels; if they are INSIDE, no tap is left or right of the image.
    template <int P, bool INSIDE>
    static inline void count_pixels(const Rows& rows, int64_t x, int64_t width, const uint8_t* weights, int64_t words,
                                    Count* counts) {
        for (int block = 0; block < BLOCK / FILTERS; ++block) {
            __m512i sums[P];
            for (auto& sum : sums) sum = _mm512_setzero_si512();
            for (int dy = 0; dy < TAPS; ++dy)
                for (int dx = 0; dx < TAPS; ++dx)
                    for (int64_t word = 0; word < words; ++word, weights += 4 * FILTERS) {
                        const __m512i weight = _mm512_loadu_si512(weights);
                        for (int p = 0; p < P; ++p) {
                            const int64_t at = x + p + dx - 1;
                            const bool is_padding = !rows.bits[dy] || (!INSIDE && (at < 0 || at >= width));
                            __m512i count = _mm512_set1_epi32(WORD / 2);
                            if (!is_padding) {
                                int32_t bits;
                                std::memcpy(&bits, rows.bits[dy] + (at * words + word) * 4, 4);
                                count = _mm512_popcnt_epi32(_mm512_xor_si512(weight, _mm512_set1_epi32(bits)));
                            }
                            sums[p] = _mm512_add_epi32(sums[p], count);
                        }
                    }
            for (int p = 0; p < P; ++p) _mm512_storeu_si512(counts + p * BLOCK + block * FILTERS, sums[p]);
        }
    }

    static void count(const Rows& rows, int64_t x, int64_t width, const uint8_t* weights, int64_t nibbles, Count* counts) {
        const int64_t words = nibbles / 8;
        if (x > 0 && x + PIXELS < width && words == 2) count_pixels<PIXELS, true>(rows, x, width, weights, 2, counts);
        else if (x > 0 && x + PIXELS < width) count_pixels<PIXELS, true>(rows, x, width, weights, words, counts);
        else
            for (int64_t p = 0; p < std::min<int64_t>(PIXELS, width - x); ++p)
                count_pixels<1, false>(rows, x + p, width, weights, words, counts + p * BLOCK);
    }
};

constexpr bool HAS_POPCOUNT = true;
#else
constexpr bool HAS_POPCOUNT = false;
#endif

// Whether the mismatches of a unit's input are counted by population counts.
bool by_popcount(int64_t in_channels) { return HAS_POPCOUNT && in_channels % 32 == 0; }

// What is done to the sums of a unit's convolution, for eight output channels of a pixel. `numbers` are theirs.
struct Epilogue {
    Unit unit;

    bool has(Number number) const { return unit.has >> number & 1; }

    static Floats the(Number number, const float* numbers) { return load(numbers + number * LANES); }

    Floats activate(Floats value, const float* numbers) const {
        if (unit.activation == PRELU) {
            if (has(SHIFT_IN)) value += the(SHIFT_IN, numbers);
            value = value > 0.0f ? value : value * the(SLOPE, numbers);
            if (has(SHIFT_OUT)) value += the(SHIFT_OUT, numbers);
        } else if (unit.activation == HARDTANH) {
            value = value < -1.0f ? all(-1.0f) : value;
            value = value > 1.0f ? all(1.0f) : value;
        }
        return value;
    }

    static Floats affine(Floats value, Floats factor, Floats shift, bool is_fused) {
        return is_fused ? fused(value, factor, shift) : value * factor + shift;
    }

    Floats operator()(Floats value, const float* numbers, const float* residual) const {
        if (has(SCALE)) value *= the(SCALE, numbers);
        value *= unit.gain;
        if (has(BIAS)) value += the(BIAS, numbers);
        if (has(POST_FACTOR)) value = affine(value, the(POST_FACTOR, numbers), the(POST_SHIFT, numbers), unit.post_fused);
        if (!unit.activation_after) value = activate(value, numbers);
        if (residual) value += load(residual) * unit.residual_scale;
        if (unit.activation_after) value = activate(value, numbers);
        if (has(OUT_FACTOR)) value = affine(value, the(OUT_FACTOR, numbers), the(OUT_SHIFT, numbers), unit.out_fused);
        if (unit.leaky != 1.0f) value = value > 0.0f ? value : value * unit.leaky;
        return value;
    }
};

// The same for a unit of BBCU, whose steps need not be asked for.
struct ReferenceEpilogue {
    static bool fits(const Unit& unit) {
        constexpr int32_t has = 1 << SCALE | 1 << SHIFT_IN | 1 << SLOPE | 1 << SHIFT_OUT;
        const bool has_factors = unit.gain != 1.0f || unit.residual_scale != 1.0f || unit.leaky != 1.0f;
        return unit.has == has && unit.activation == PRELU && !unit.activation_after && !has_factors;
    }

    Floats operator()(Floats value, const float* numbers, const float* residual) const {
        value = value * Epilogue::the(SCALE, numbers) + Epilogue::the(SHIFT_IN, numbers);
        value = value > 0.0f ? value : value * Epilogue::the(SLOPE, numbers);
        value += Epilogue::the(SHIFT_OUT, numbers);
        return residual ? value + load(residual) : value;
    }
};

struct Image {
    int64_t height, width;
    const uint8_t* bits;
    const float* residual;  // (height, width, channels of a part), or null
    float* out;             // (height * ratio, width * ratio, channels of a part)
    Signs next;             // for the pixels of `out`; `bits` is null if none are wanted
};

// The bytes of the packed weights of so many output channels.
int64_t weight_bytes(int64_t in_channels, int64_t out_channels) {
    return out_channels * TAPS * TAPS * bytes_of(in_channels) * (by_popcount(in_channels) ? 1 : 2);
}

// The signs of a block's filters, (count, channels, 3, 3).
struct Filters {
    const int8_t* signs;
    int64_t channels, count;

    // The bits of adjacent channels in one tap of a filter; 0 for channels and filters that do not exist.
    uint32_t bits(int64_t filter, int64_t tap, int64_t first, int64_t number) const {
        uint32_t found = 0;
        for (int64_t i = 0; filter < count && i < std::min(number, channels - first); ++i)
            found |= static_cast<uint32_t>(signs[(filter * channels + first + i) * TAPS * TAPS + tap] > 0) << i;
        return found;
    }
};

// As Lookup takes them: [row of taps][nibble][column of taps], a byte for each filter. In a vector of N bytes, filters 0
// to N / 2 are the even bytes and the rest the odd ones, so that a sum of 16-bit lanes has them in order.
void pack_indices(const Filters& filters, int64_t block, uint8_t* weights) {
    for (int64_t dy = 0; dy < TAPS; ++dy)
        for (int64_t nibble = 0; nibble < 2 * bytes_of(filters.channels); ++nibble)
            for (int64_t dx = 0; dx < TAPS; ++dx)
                for (int64_t at = 0; at < block; ++at) {
                    const int64_t lane = at % N, filter = at - lane + lane / 2 + lane % 2 * (N / 2);
                    *weights++ = static_cast<uint8_t>(filters.bits(filter, dy * TAPS + dx, 4 * nibble, 4));
                }
}

// As Popcount takes them: [16 filters][tap][word], a word of 32 channels for each filter.
void pack_words(const Filters& filters, int64_t block, uint8_t* weights) {
    for (int64_t start = 0; start < block; start += 16)
        for (int64_t tap = 0; tap < TAPS * TAPS; ++tap)
            for (int64_t word = 0; word < filters.channels / 32; ++word)
                for (int64_t at = start; at < start + 16; ++at, weights += 4) {
                    const uint32_t bits = filters.bits(at, tap, 32 * word, 32);
                    std::memcpy(weights, &bits, 4);
                }
}

// The offsets into the table of the pairs of pixels that start at -1, 0, 1, ..., `pairs` - 2 of a row, nibble by nibble.
void find_offsets(const uint8_t* bits, int64_t width, int64_t nibbles, int64_t pairs, uint16_t* row, uint16_t* offsets) {
    std::fill(row, row + (pairs + 1) * nibbles, static_cast<uint16_t>(PAD));
    if (bits != nullptr)
        for (int64_t i = 0; i < width * nibbles / 2; ++i) {
            row[nibbles + 2 * i] = bits[i] & 15;
            row[nibbles + 2 * i + 1] = bits[i] >> 4;
        }
    for (int64_t i = 0; i < pairs * nibbles; ++i)
        offsets[i] = static_cast<uint16_t>(ROW * (row[i] + NIBBLES * row[i + nibbles]));
}

// Finish eight output channels of a pixel, or the `left` last ones: the steps, the output and the signs that come next.
template <bool WHOLE, class Steps>
inline void finish(Floats value, const Steps& steps, const float* numbers, int64_t channel, int64_t left,
                   const float* residual, float* out, const Signs& next, uint8_t* bits) {
    if (WHOLE) {
        value = steps(value, numbers, residual);
        store(out, value);
    } else {
        alignas(32) float some[LANES] = {};
        if (residual) std::copy_n(residual, left, some);
        value = steps(value, numbers, residual ? some : nullptr);
        store(some, value);
        std::copy_n(some, left, out);
    }
    if (bits) {
        const uint8_t found = at_least(value, load(next.threshold + channel)) ^ next.flip[channel / LANES];
        *bits = WHOLE ? found : found & ((1 << left) - 1);
    }
}

// Compute a row of the output in the channels of one block, from `channel` on. The arguments that are structs are copies,
// so that the compiler knows that no store changes them.
template <class Counter, class Steps>
void compute_block(const Image image, const Unit unit, const Steps steps, const Rows rows, const int64_t y,
                   const int64_t part, const int64_t channel, const uint8_t* weights) {
    constexpr int BLOCK = Counter::BLOCK;
    const int64_t nibbles = 2 * bytes_of(unit.in_channels), missing = 4 * nibbles - unit.in_channels;
    const int64_t ratio = unit.ratio, channels = std::min<int64_t>(BLOCK, unit.out_channels - channel);
    const float* numbers = unit.numbers + (part * padded(unit.out_channels) + channel) * NUMBERS;
    const int64_t used_rows = TAPS - (y == 0) - (y == image.height - 1);
    const int64_t bytes = bytes_of(unit.out_channels);
    auto pixel_at = [&](int64_t x) {
        return (y * ratio + part / ratio) * image.width * ratio + x * ratio + part % ratio;
    };
    auto residual_at = [&](int64_t x) { return image.residual + (y * image.width + x) * unit.out_channels + channel; };
    alignas(64) typename Counter::Count counts[PIXELS * BLOCK];
    for (int64_t x = 0; x < image.width; x += PIXELS) {
        // While it counts, the memory delivers what is read and written afterwards.
        for (int64_t p = 0; p < PIXELS; ++p)
            for (int64_t c = 0; c < BLOCK; c += 16) {
                __builtin_prefetch(image.out + pixel_at(x + p) * unit.out_channels + channel + c, 1);
                if (image.residual) __builtin_prefetch(residual_at(x + p) + c);
            }
        Counter::count(rows, x, image.width, weights, nibbles, counts);
        for (int64_t p = 0; p < std::min<int64_t>(PIXELS, image.width - x); ++p) {
            const int64_t used = used_rows * (TAPS - (x + p == 0) - (x + p == image.width - 1));
            const auto products = static_cast<float>(TAPS * TAPS * 4 * nibbles - missing * used);
            const int64_t pixel = pixel_at(x + p);
            float* out = image.out + pixel * unit.out_channels + channel;
            const float* residual = image.residual ? residual_at(x + p) : nullptr;
            uint8_t* bits = image.next.bits ? image.next.bits + pixel * bytes + channel / LANES : nullptr;
            auto finish_at = [&](auto whole, int64_t c) {
                // Whole numbers below 2^24, so that nothing is rounded.
                const Floats mismatches = __builtin_convertvector(widened(counts + p * BLOCK + c), Floats);
                finish<whole.value>(fused(mismatches, all(-2.0f), all(products)), steps, numbers + c * NUMBERS, channel + c,
                                    channels - c, residual ? residual + c : nullptr, out + c, image.next,
                                    bits ? bits + c / LANES : nullptr);
            };
            if (channels == BLOCK) {
#pragma GCC unroll 8
                for (int c = 0; c < BLOCK; c += LANES) finish_at(std::true_type{}, c);
            } else {
                int64_t c = 0;
                for (; c + LANES <= channels; c += LANES) finish_at(std::true_type{}, c);
                if (c < channels) finish_at(std::false_type{}, c);
            }
        }
    }
}

// Call `block` with the counter for a block of channels; looking up is faster for a number of nibbles that is USUAL.
template <int CHANNELS, int USUAL, class Block>
void choose([[maybe_unused]] bool counts_bits, [[maybe_unused]] int64_t nibbles, const Block& block) {
#if defined(__AVX512VPOPCNTDQ__)
    if (counts_bits) return block(Popcount<CHANNELS>{});
#else
    if (nibbles == USUAL) return block(Lookup<CHANNELS / N, USUAL>{});
#endif
    block(Lookup<CHANNELS / N, 0>{});
}

template <class Steps>
void compute_rows(const Image& image, const Unit& unit, const Steps& steps, int64_t first, int64_t last) {
    const int64_t nibbles = 2 * bytes_of(unit.in_channels);
    const int64_t pairs = (image.width + PIXELS - 1) / PIXELS * PIXELS + 1;
    const bool counts_bits = by_popcount(unit.in_channels);
    std::vector<uint16_t> row, offsets;
    if (!counts_bits) {
        row.resize((pairs + 1) * nibbles);
        offsets.resize(TAPS * pairs * nibbles);
    }
    auto bits_of = [&](int64_t y) {
        return y >= 0 && y < image.height ? image.bits + y * image.width * nibbles / 2 : nullptr;
    };
    auto slot = [&](int64_t y) { return offsets.data() + (y + TAPS) % TAPS * pairs * nibbles; };
    auto prepare = [&](int64_t y) {
        if (!counts_bits) find_offsets(bits_of(y), image.width, nibbles, pairs, row.data(), slot(y));
    };
    prepare(first - 1);
    prepare(first);
    for (int64_t y = first; y < last; ++y) {
        prepare(y + 1);
        const Rows rows{{bits_of(y - 1), bits_of(y), bits_of(y + 1)}, {slot(y - 1), slot(y), slot(y + 1)}};
        const uint8_t* weights = unit.weights;
        for (int64_t part = 0; part < unit.ratio * unit.ratio; ++part)
            for (int64_t channel = 0; channel < unit.out_channels;) {
                const bool is_full = padded(unit.out_channels) - channel >= 64;
                auto block = [&](auto counter) {
                    compute_block<decltype(counter), Steps>(image, unit, steps, rows, y, part, channel, weights);
                };
                if (is_full) choose<64, 16>(counts_bits, nibbles, block);
                else choose<32, 8>(counts_bits, nibbles, block);
                weights += weight_bytes(unit.in_channels, is_full ? 64 : 32);
                channel += is_full ? 64 : 32;
            }
    }
}

// --- A narrow convolution --------------------------------------------------------------------------------------------

constexpr int STRIP = 3;  // vectors of adjacent pixels of a row that are computed together
constexpr int COLUMNS = STRIP * LANES;
constexpr int SIDE = COLUMNS + LANES;  // pixels that are transposed for them: one to the left, and at least one to the right

// Transpose a row of NHWC from the column `x` - 1 on, so that each channel's SIDE pixels lie together; outside of the
// image are zeros, as they are in all of it if there is no such row.
void transpose(const float* row, int64_t width, int64_t channels, int64_t x, float* planes) {
    if (row == nullptr) {
        std::fill(planes, planes + channels * SIDE, 0.0f);
        return;
    }
    for (int64_t p = 0; p < SIDE; p += LANES) {
        const int64_t at = x - 1 + p;
        const bool is_inside = at >= 0 && at + LANES <= width;
        int64_t c = 0;
        for (; is_inside && c + LANES <= channels; c += LANES)
            transpose_square(row + at * channels + c, channels, planes + c * SIDE + p, SIDE);
        for (; c < channels; ++c)
            for (int64_t i = 0; i < LANES; ++i)
                planes[c * SIDE + p + i] = at + i >= 0 && at + i < width ? row[(at + i) * channels + c] : 0.0f;
    }
}

// Convolve the rows `first` to `last` of an image with few filters. Each sum is one chain of fused multiply-adds over the
// rows of the taps, their columns and the channels, in this order, and the bias comes last: the order of oneDNN.
template <int FILTERS>
void convolve_rows(const float* values, int64_t height, int64_t width, int64_t channels, const float* weights,
                   const float* bias, float* out, int64_t first, int64_t last) {
    std::vector<float> planes(TAPS * channels * SIDE);
    auto plane = [&](int64_t y) { return planes.data() + (y + TAPS) % TAPS * channels * SIDE; };
    for (int64_t x = 0; x < width; x += COLUMNS) {
        auto prepare = [&](int64_t y) {
            const bool inside = y >= 0 && y < height;
            transpose(inside ? values + y * width * channels : nullptr, width, channels, x, plane(y));
        };
        prepare(first - 1);
        prepare(first);
        for (int64_t y = first; y < last; ++y) {
            prepare(y + 1);
            if (y + 2 < height)  // the next row, which the memory delivers meanwhile
                for (int64_t i = 0; i < std::min<int64_t>(COLUMNS, width - x) * channels; i += 16)
                    __builtin_prefetch(values + ((y + 2) * width + x) * channels + i);
            Floats sums[FILTERS][STRIP] = {};
            const float* weight = weights;  // (3, 3, channels, FILTERS)
            for (int dy = 0; dy < TAPS; ++dy)
                for (int dx = 0; dx < TAPS; ++dx) {
                    const float* from = plane(y - 1 + dy) + dx;
                    for (int64_t c = 0; c < channels; ++c, from += SIDE, weight += FILTERS)
                        for (int f = 0; f < FILTERS; ++f)
                            for (int s = 0; s < STRIP; ++s)
                                sums[f][s] = fused(load(from + s * LANES), all(weight[f]), sums[f][s]);
                }
            float found[FILTERS][COLUMNS];
            for (int f = 0; f < FILTERS; ++f)
                for (int s = 0; s < STRIP; ++s) store(found[f] + s * LANES, bias ? sums[f][s] + bias[f] : sums[f][s]);
            for (int64_t p = 0; p < std::min<int64_t>(COLUMNS, width - x); ++p)
                for (int f = 0; f < FILTERS; ++f) out[(y * width + x + p) * FILTERS + f] = found[f][p];
        }
    }
}

}  // namespace

// --- What native.py calls --------------------------------------------------------------------------------------------

extern "C" {

// The bytes of the packed weights of a unit.
int64_t bbcu_weight_bytes(int64_t in_channels, int64_t out_channels, int64_t parts) {
    return parts * weight_bytes(in_channels, padded(out_channels));
}

// Pack signs (parts * out_channels, in_channels, 3, 3) for the counters, part by part and block by block.
void bbcu_pack_weights(const int8_t* signs, int64_t in_channels, int64_t out_channels, int64_t parts, uint8_t* weights) {
    for (int64_t part = 0; part < parts; ++part)
        for (int64_t channel = 0; channel < out_channels;) {
            const int64_t block = padded(out_channels) - channel >= 64 ? 64 : 32;
            const Filters filters{signs + (part * out_channels + channel) * in_channels * TAPS * TAPS, in_channels,
                                  std::min(block, out_channels - channel)};
            if (by_popcount(in_channels)) pack_words(filters, block, weights);
            else pack_indices(filters, block, weights);
            weights += weight_bytes(in_channels, block);
            channel += block;
        }
}

// The signs of floats (pixels, channels), as a unit takes them.
void bbcu_signs(const float* values, int64_t pixels, int64_t channels, const Signs* signs, int threads) {
    const int64_t bytes = bytes_of(channels), whole = channels / LANES;
    in_parallel(pixels, 4096, threads, [&](int64_t first, int64_t last) {
        for (int64_t pixel = first; pixel < last; ++pixel) {
            const float* from = values + pixel * channels;
            uint8_t* bits = signs->bits + pixel * bytes;
            for (int64_t k = 0; k < whole; ++k)
                bits[k] = at_least(load(from + k * LANES), load(signs->threshold + k * LANES)) ^ signs->flip[k];
            if (whole < bytes) {
                uint8_t some = 0;
                for (int64_t c = whole * LANES; c < channels; ++c)
                    some |= static_cast<uint8_t>((from[c] >= signs->threshold[c]) << (c % LANES));
                bits[whole] = (some ^ signs->flip[whole]) & ((1 << (channels % LANES)) - 1);
            }
        }
    });
}

// The same for ones and minus ones in bytes.
void bbcu_signs_of_bytes(const int8_t* values, int64_t pixels, int64_t channels, uint8_t* bits, int threads) {
    const int64_t bytes = bytes_of(channels);
    in_parallel(pixels, 4096, threads, [&](int64_t first, int64_t last) {
        for (int64_t pixel = first; pixel < last; ++pixel)
            for (int64_t k = 0; k < bytes; ++k) {
                // The top bit of each of eight bytes, 1 for a negative one, gathered into one byte by a multiplication.
                uint64_t eight = ~uint64_t{0};
                std::memcpy(&eight, values + pixel * channels + k * 8, std::min<int64_t>(8, channels - k * 8));
                bits[pixel * bytes + k] = static_cast<uint8_t>(((~eight >> 7 & 0x0101010101010101) * 0x0102040810204080) >> 56);
            }
    });
}

// Run a unit on images of packed signs.
void bbcu_unit(const Unit* unit, const uint8_t* bits, int64_t images, int64_t height, int64_t width,
               const float* residual, float* out, const Signs* next, int threads) {
    const int64_t pixels = height * width, larger = pixels * unit->ratio * unit->ratio;
    in_parallel(images * height, 4, threads, [&](int64_t first, int64_t last) {
        while (first < last) {
            const int64_t index = first / height, begin = first % height;
            const int64_t end = std::min(height, begin + last - first);
            Image image{height, width, bits + index * pixels * bytes_of(unit->in_channels), nullptr, nullptr, *next};
            if (residual) image.residual = residual + index * pixels * unit->out_channels;
            image.out = out + index * larger * unit->out_channels;
            if (next->bits) image.next.bits = next->bits + index * larger * bytes_of(unit->out_channels);
            if (ReferenceEpilogue::fits(*unit)) compute_rows(image, *unit, ReferenceEpilogue{}, begin, end);
            else compute_rows(image, *unit, Epilogue{*unit}, begin, end);
            first += end - begin;
        }
    });
}

// Convolve NHWC floats with one or three filters, (3, 3, channels, filters), padded with zeros; `bias` may be null.
void bbcu_convolve(const float* values, int64_t images, int64_t height, int64_t width, int64_t channels,
                   const float* weights, const float* bias, int64_t filters, float* out, int threads) {
    const auto convolve = filters == 1 ? convolve_rows<1> : convolve_rows<3>;
    in_parallel(images * height, 8, threads, [&](int64_t first, int64_t last) {
        while (first < last) {
            const int64_t index = first / height, begin = first % height;
            const int64_t end = std::min(height, begin + last - first), pixels = index * height * width;
            convolve(values + pixels * channels, height, width, channels, weights, bias, out + pixels * filters, begin, end);
            first += end - begin;
        }
    });
}

}  // extern "C"
