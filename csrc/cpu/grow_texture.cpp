// Pixels of a texture, one after the other: each copies the sample's pixel whose surroundings are most like its own.
//
// Candidates are compared a block of neighbours at a time, and a block is given up as soon as each of them is further away
// than what could still be taken: sums of squares only grow. What was taken nearby bounds that from the start. So a search
// is over before a second thread would have woken up, and all is done by one.
#include <limits>

#include "memory.h"
#include "processor.h"

// The reference rounds after each operation. So does this, or another candidate might be taken.
#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

namespace cnnviz::cpu {
namespace {

constexpr int64_t kBlockBytes = 128;  // of a block's distances
constexpr int64_t kStep = 4;          // offsets between two looks at whether a block is given up
constexpr int64_t kNearby = 6;        // known pixels around a place whose sources are tried first

template <class T>
constexpr int64_t kBlock = kBlockBytes / static_cast<int64_t>(sizeof(T));

// What a place is compared by: offsets that are known around it, and the colours there.
template <class T>
struct Window {
  std::vector<T> planes;  // of the sample, and a block more, which is read and not used
  std::vector<T> all_weights;
  int64_t channels, plane, count;
  const int64_t* offsets;
  std::vector<int64_t> steps;  // in the sample, from a candidate
  std::vector<T> weights, colours;

  Window(const Tensor& sample, const Tensor& around, const Tensor& weights)
      : planes(sample.numel() + kBlock<T>),
        all_weights(around.size(0)),
        channels(sample.size(0)),
        plane(sample.size(1) * sample.size(2)),
        count(around.size(0)),
        offsets(numbers(around)) {
    std::copy_n(static_cast<const T*>(sample.const_data_ptr()), sample.numel(), planes.begin());
    std::copy_n(static_cast<const T*>(weights.const_data_ptr()), count, all_weights.begin());
  }

  void clear() {
    steps.clear();
    weights.clear();
    colours.clear();
  }
  void add(int64_t offset, int64_t step, const T* from, int64_t next) {
    steps.push_back(step);
    weights.push_back(all_weights[offset]);
    for (int64_t c = 0; c < channels; ++c) colours.push_back(from[c * next]);
  }
};

// The candidates that may still be taken, of those that were looked at.
template <class T>
struct Near {
  struct Candidate {
    int64_t place;
    T distance;
  };
  T factor, nearest, limit;
  std::vector<Candidate> found;

  explicit Near(T factor) : factor(factor) { clear(); }
  void clear() { nearest = limit = std::numeric_limits<T>::infinity(), found.clear(); }
  void add(int64_t place, T distance) {
    if (!(distance <= limit)) return;
    found.push_back({place, distance});
    if (distance < nearest) nearest = distance, limit = factor * distance;
  }
  int64_t take(double draw) {
    const auto far = [this](const Candidate& candidate) { return candidate.distance > limit; };
    found.erase(std::remove_if(found.begin(), found.end(), far), found.end());
    STD_TORCH_CHECK(!found.empty(), "the sample or the guide has numbers that are not finite");
    return found[static_cast<size_t>(draw * static_cast<double>(found.size()))].place;
  }
};

template <class T>
struct Search {
  Window<T> window, guide;
  std::vector<T> start;  // 0 for a candidate, infinity for what is none
  int64_t first, last;   // candidate, and one past the last

  Search(Window<T> window_, Window<T> guide_, int64_t height, int64_t width)
      : window(std::move(window_)), guide(std::move(guide_)) {
    int64_t top = 0, bottom = 0, left = 0, right = 0;
    for (const Window<T>* part : {&window, &guide})
      for (int64_t i = 0; i < part->count; ++i) {
        const int64_t down = part->offsets[2 * i], across = part->offsets[2 * i + 1];
        top = std::max(top, -down), bottom = std::max(bottom, down);
        left = std::max(left, -across), right = std::max(right, across);
      }
    STD_TORCH_CHECK(top < height && bottom < height - top && left < width && right < width - left,
                    "the offsets reach further than the sample");
    first = top * width + left;
    last = (height - 1 - bottom) * width + width - right;
    start.assign(height * width + kBlock<T>, std::numeric_limits<T>::infinity());
    for (int64_t y = top; y < height - bottom; ++y) std::fill_n(start.begin() + y * width + left, width - left - right, T(0));
  }
  bool is_candidate(int64_t place) const { return place >= first && place < last && start[place] == T(0); }
};

// A block's distances in vectors of some bytes, which never lie in memory.
template <int64_t kBytes, class T>
struct Block {
  using Vector [[gnu::vector_size(kBytes)]] = T;
  static constexpr int64_t kLanes = kBytes / static_cast<int64_t>(sizeof(T)), kVectors = kBlockBytes / kBytes;
  Vector distances[kVectors];

  [[gnu::always_inline]] bool any_within(T limit) const {
    Vector least = distances[0];
    for (int64_t v = 1; v < kVectors; ++v) least = distances[v] < least ? distances[v] : least;
    const auto within = least <= limit;
    uint64_t words[kBytes / 8], any = 0;
    std::memcpy(words, &within, kBytes);
    for (const uint64_t word : words) any |= word;
    return any != 0;
  }

  // Add a window's squares for the candidates from a place on; false once all of them are beyond the limit.
  template <int64_t kChannels>
  [[gnu::always_inline]] bool add(const Window<T>& window, int64_t place, T limit) {
    const int64_t channels = kChannels ? kChannels : window.channels, count = static_cast<int64_t>(window.steps.size());
    const T *colour = window.colours.data(), *weight = window.weights.data(), *from = window.planes.data() + place;
    const int64_t* step = window.steps.data();
    for (int64_t begin = 0; begin < count; begin += kStep) {
      for (int64_t i = begin; i < std::min(begin + kStep, count); ++i, colour += channels) {
        Vector squares[kVectors] = {};
        for (int64_t c = 0; c < channels; ++c)
          for (int64_t v = 0; v < kVectors; ++v) {
            Vector seen;
            std::memcpy(&seen, from + step[i] + c * window.plane + v * kLanes, kBytes);
            seen -= colour[c];
            squares[v] += seen * seen;
          }
        for (int64_t v = 0; v < kVectors; ++v) distances[v] += weight[i] * squares[v];
      }
      if (!any_within(limit)) return false;
    }
    return true;
  }
};

// Look at the candidates in some blocks, of which the first begins at a place, in the order of places.
template <int64_t kBytes, int64_t kChannels, class T>
[[gnu::always_inline]] inline void look(const Search<T>& search, int64_t place, int64_t blocks, Near<T>& near) {
  for (; blocks > 0; --blocks, place += kBlock<T>) {
    Block<kBytes, T> block;
    std::memcpy(block.distances, search.start.data() + place, kBlockBytes);
    if (!block.any_within(near.limit) || !block.template add<kChannels>(search.window, place, near.limit) ||
        !block.template add<kChannels>(search.guide, place, near.limit))
      continue;
    T distance[kBlock<T>];
    std::memcpy(distance, block.distances, kBlockBytes);
    for (int64_t i = 0; i < kBlock<T>; ++i)
      if (search.start[place + i] == T(0)) near.add(place + i, distance[i]);
  }
}

template <class T>
using Look = void (*)(const Search<T>&, int64_t, int64_t, Near<T>&);

template <int64_t kChannels, class T>
void look_anywhere(const Search<T>& search, int64_t place, int64_t blocks, Near<T>& near) {
  look<16, kChannels>(search, place, blocks, near);
}

#ifdef CNNVIZ_X86_LEVELS
template <int64_t kChannels, class T>
[[gnu::target("arch=x86-64-v4")]] void look_avx512(const Search<T>& search, int64_t place, int64_t blocks, Near<T>& near) {
  look<64, kChannels>(search, place, blocks, near);
}

template <int64_t kChannels, class T>
[[gnu::target("arch=x86-64-v3")]] void look_avx2(const Search<T>& search, int64_t place, int64_t blocks, Near<T>& near) {
  look<32, kChannels>(search, place, blocks, near);
}
#endif

// The function for the longest vectors that the processor has.
template <int64_t kChannels, class T>
Look<T> best_look() {
#ifdef CNNVIZ_X86_LEVELS
  if (has_avx512()) return &look_avx512<kChannels, T>;
  if (has_avx2()) return &look_avx2<kChannels, T>;
#endif
  return &look_anywhere<kChannels, T>;
}

struct Canvas {
  int64_t height, width, sample_width;
  bool wrap;

  // The place so far from another one, or -1 beyond the border.
  int64_t at(int64_t place, int64_t down, int64_t across) const {
    int64_t y = place / width + down, x = place % width + across;
    if (wrap) {
      y = (y % height + height) % height;
      x = (x % width + width) % width;
    }
    return y >= 0 && y < height && x >= 0 && x < width ? y * width + x : -1;
  }
  int64_t step(const int64_t* offset) const { return offset[0] * sample_width + offset[1]; }
};

template <class T>
void grow(Search<T>& search, Look<T> look_at, const Canvas& canvas, const T* guide, const Tensor& places,
          const double* draws, T factor, int64_t* sources) {
  Window<T>&window = search.window, &guiding = search.guide;
  const int64_t blocks = (search.last - search.first + kBlock<T> - 1) / kBlock<T>;
  Near<T> near(factor);
  std::vector<int64_t> tried;
  int64_t taken = search.first;
  for (int64_t k = 0; k < places.size(0); ++k) {
    const int64_t place = numbers(places)[k];
    tried.assign(1, taken);
    window.clear();
    for (int64_t i = 0; i < window.count; ++i) {
      const int64_t* offset = window.offsets + 2 * i;
      const int64_t at = canvas.at(place, offset[0], offset[1]), step = canvas.step(offset);
      if (at < 0 || sources[at] < 0) continue;
      window.add(i, step, window.planes.data() + sources[at], window.plane);
      const int64_t beside = sources[at] - step;
      if (static_cast<int64_t>(window.steps.size()) <= kNearby && search.is_candidate(beside)) tried.push_back(beside);
    }
    guiding.clear();
    for (int64_t i = 0; i < guiding.count; ++i) {
      const int64_t* offset = guiding.offsets + 2 * i;
      const int64_t at = canvas.at(place, offset[0], offset[1]);
      if (at >= 0) guiding.add(i, canvas.step(offset), guide + at, canvas.height * canvas.width);
    }
    for (auto one = tried.begin(); one != tried.end(); ++one)
      if (std::find(tried.begin(), one, *one) == one) look_at(search, *one, 1, near);
    near.found.clear();  // they come again, in the order of places
    look_at(search, search.first, blocks, near);
    sources[place] = taken = near.take(draws[k]);
    near.clear();
  }
}

}  // namespace

Tensor grow_texture(const Tensor& sample, const Tensor& sources, const Tensor& places, const Tensor& draws,
                    const Tensor& offsets, const Tensor& weights, const Tensor& guide, const Tensor& guide_sample,
                    const Tensor& guide_offsets, const Tensor& guide_weights, double tolerance, bool wrap) {
  const int64_t height = sample.size(1), width = sample.size(2), pixels = height * width;
  const Tensor before = in_order(sources), where = in_order(places), drawn = in_order(draws);
  Tensor made = empty(before, {before.size(0), before.size(1)}, false);
  int64_t* to = static_cast<int64_t*>(made.mutable_data_ptr());
  std::copy_n(numbers(before), before.numel(), to);
  const double* draw = static_cast<const double*>(drawn.const_data_ptr());
  // Python has checked all this, but not for graphs that torch exported.
  STD_TORCH_CHECK(first_outside(to, made.numel(), -1, pixels) < 0, "a source lies outside of the sample");
  check_index(where, made.numel());
  STD_TORCH_CHECK(std::all_of(draw, draw + drawn.size(0), [](double d) { return d >= 0 && d < 1; }), "a draw is not in [0, 1)");
  const Tensor around = in_order(offsets), around_guide = in_order(guide_offsets), maps = in_order(guide);
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    Search<T> search(Window<T>(in_order(sample), around, in_order(weights)),
                     Window<T>(in_order(guide_sample), around_guide, in_order(guide_weights)), height, width);
    const Canvas canvas{made.size(0), made.size(1), width, wrap};
    const bool three = sample.size(0) == 3 && (guide.size(0) == 3 || guide_offsets.size(0) == 0);
    grow(search, three ? best_look<3, T>() : best_look<0, T>(), canvas, static_cast<const T*>(maps.const_data_ptr()),
         where, draw, static_cast<T>(1 + tolerance), to);
  };
  sample.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
  return made;
}

STABLE_TORCH_LIBRARY_IMPL(cnnviz, CPU, library) { library.impl("grow_texture", TORCH_BOX(&grow_texture)); }

}  // namespace cnnviz::cpu
