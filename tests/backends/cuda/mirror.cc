#include "backends/cuda/mirror.h"

#include <cstring>
#include <deque>
#include <vector>

namespace ostro::ops::testing {
namespace {

constexpr std::size_t kGuard = 256;
constexpr unsigned char kPoison = 0xff;

// The operands of one op on the device.
class Operands {
 public:
  Operands(Backend& gpu, Rows rows) : gpu_(gpu), rows_(rows) {}

  View in(const View& host) { return mirrored(host, false); }
  View out(const View& host) { return mirrored(host, true); }
  quant::Weight in(const quant::Weight& host) { return {in(host.data), in(host.scale)}; }
  Requests in(const Requests& r) {
    return {in(r.query_start), in(r.context_len), in(r.block_table), r.single,
            r.rest_start ? in(r.rest_start) : View{}};
  }

  // Brings the outputs back.
  void finish() {
    for (Operand& o : operands_) {
      const std::vector<unsigned char> before = o.bytes;
      gpu_.copy(o.memory.view(DType::u8, 1, std::int64_t(o.bytes.size())),
                matrix(o.bytes.data(), DType::u8, 1, std::int64_t(o.bytes.size())));
      gpu_.wait();
      const std::size_t row_bytes = std::size_t(o.host.cols) * size_of(o.host.dtype);
      const std::size_t pitch = std::size_t(o.device.row_stride) * size_of(o.host.dtype);
      std::size_t at = 0;
      for (std::int64_t r = 0; r < o.host.rows; ++r) {
        const std::size_t row = o.first + std::size_t(r) * pitch;
        expect_poison(o, at, row);
        at = row + row_bytes;
        if (o.is_output)
          std::memcpy(host_row(o.host, r), o.bytes.data() + row, row_bytes);
        else
          OSTRO_CHECK(std::memcmp(before.data() + row, o.bytes.data() + row, row_bytes) == 0,
                      "an input ", describe(o.host), " has changed in row ", r);
      }
      expect_poison(o, at, o.bytes.size());
    }
  }

 private:
  struct Operand {
    View host, device;
    bool is_output;
    std::size_t first;  // byte of the first element
    std::vector<unsigned char> bytes;
    Buffer memory;
  };

  static char* host_row(const View& v, std::int64_t r) {
    return static_cast<char*>(v.data) + r * v.row_stride * std::int64_t(size_of(v.dtype));
  }

  static void expect_poison(const Operand& o, std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i)
      OSTRO_CHECK(o.bytes[i] == kPoison, "byte ", i, " of ", o.bytes.size(), " around ",
                  describe(o.host), " has changed");
  }

  View mirrored(const View& host, bool is_output) {
    View device = host;
    device.device = Device::cuda;
    if (!host.data || host.rows == 0 || host.cols == 0) return device;
    for (Operand& o : operands_)  // two operands that are one here are one there
      if (o.host.data == host.data && same_shape(o.host, host) && o.host.dtype == host.dtype) {
        o.is_output |= is_output;
        return o.device;
      }
    const auto size = std::int64_t(size_of(host.dtype));
    const bool aligned = rows_ == Rows::aligned;
    device.row_stride =
        aligned ? (round_up<std::int64_t>(host.cols * size, 16) + 16) / size : host.cols + 3;
    Operand o{host, device, is_output, kGuard + (aligned ? 0 : std::size_t(size)), {}, {}};
    o.bytes.assign(o.first + std::size_t(host.rows * device.row_stride * size) + kGuard, kPoison);
    for (std::int64_t r = 0; r < host.rows; ++r)
      std::memcpy(o.bytes.data() + o.first + std::size_t(r * device.row_stride * size),
                  host_row(host, r), std::size_t(host.cols * size));
    o.memory = gpu_.allocate(o.bytes.size());
    gpu_.copy(matrix(o.bytes.data(), DType::u8, 1, std::int64_t(o.bytes.size())),
              o.memory.view(DType::u8, 1, std::int64_t(o.bytes.size())));
    o.device.data = static_cast<char*>(o.memory.data()) + o.first;
    operands_.push_back(std::move(o));
    return operands_.back().device;
  }

  Backend& gpu_;
  Rows rows_;
  std::deque<Operand> operands_;
};

class Mirror final : public Backend {
 public:
  Mirror(std::shared_ptr<Backend> gpu, Rows rows) : gpu_(std::move(gpu)), rows_(rows) {}

  Buffer allocate(std::size_t bytes) override { return allocate_host(bytes); }
  quant::Weight place(const quant::Weight& host) override { return host; }
  void copy(const View& from, const View& to) override {
    std::memcpy(to.data, from.data, from.bytes());
  }
  void wait() override { gpu_->wait(); }
  Activations e4m3_activations() const override { return gpu_->e4m3_activations(); }
  Device device() const override { return Device::cpu; }
  std::string description() const override { return gpu_->description(); }
  std::size_t free_memory_bytes() const override { return gpu_->free_memory_bytes(); }

 protected:
  void enqueue(const Draw& op) override {
    Operands on(*gpu_, rows_);
    run(on, Draw{on.in(op.quantiles), on.out(op.y), op.key, op.first_row, op.first_col,
                 op.matrix_cols});
  }
  void enqueue(const Embed& op) override {
    Operands on(*gpu_, rows_);
    run(on, Embed{on.in(op.ids), on.in(op.table), on.out(op.y), op.first_row});
  }
  void enqueue(const GatherRows& op) override {
    Operands on(*gpu_, rows_);
    run(on, GatherRows{on.in(op.x), on.in(op.rows), on.out(op.y)});
  }
  void enqueue(const AddRmsNorm& op) override {
    Operands on(*gpu_, rows_);
    run(on, mirrored(on, op, Activations::as_is));
  }
  void enqueue(const Linear& op) override {
    Operands on(*gpu_, rows_);
    run(on, Linear{on.in(op.x), on.in(op.w), on.out(op.y), op.activations});
  }
  void enqueue(const RotaryAngles& op) override {
    Operands on(*gpu_, rows_);
    run(on,
        RotaryAngles{on.in(op.positions), on.in(op.table), on.in(op.inv_freq), on.out(op.cos_sin)});
  }
  void enqueue(const RotaryAppend& op) override {
    Operands on(*gpu_, rows_);
    run(on, RotaryAppend{on.out(op.qkv), on.in(op.cos_sin), on.in(op.requests),
                         cache(on, op.cache, true), op.heads});
  }
  void enqueue(const PagedAttention& op) override {
    Operands on(*gpu_, rows_);
    run(on, PagedAttention{on.in(op.q), on.in(op.requests), cache(on, op.cache, false),
                           on.out(op.y), op.heads, op.scale, op.window});
  }
  void enqueue(const CopyBlocks& op) override {
    Operands on(*gpu_, rows_);
    run(on, CopyBlocks{on.out(op.kv), on.in(op.copies), op.planes, op.block_rows});
  }
  void enqueue(const Route& op) override {
    Operands on(*gpu_, rows_);
    run(on, mirrored(on, op));
  }
  void enqueue(const ExpertMlp& op) override {
    Operands on(*gpu_, rows_);
    const std::vector<Expert> local = mirrored(on, op.local);
    run(on, mirrored(on, op, local));
  }
  void enqueue(const MoeBlock& op) override {
    Operands on(*gpu_, rows_);
    const std::vector<Expert> local = mirrored(on, op.mlp.local);
    run(on, MoeBlock{mirrored(on, op.norm, op.norm.activations), mirrored(on, op.route),
                     mirrored(on, op.mlp, local), mirrored(on, op.next, op.next.activations)});
  }

  void enqueue(const Sample& op) override {
    Operands on(*gpu_, rows_);
    run(on, Sample{on.in(op.logits), on.in(op.settings), on.out(op.tokens), on.out(op.log_probs),
                   on.out(op.best), on.out(op.best_log_probs)});
  }

 private:
  static AddRmsNorm mirrored(Operands& on, const AddRmsNorm& op, Activations activations) {
    return {on.in(op.x), on.out(op.residual), on.in(op.weight), on.out(op.y), op.eps, activations};
  }
  static Route mirrored(Operands& on, const Route& op) {
    return {on.in(op.x),    on.in(op.router), on.out(op.experts), on.out(op.weights),
            op.renormalize, on.in(op.live),   on.out(op.counts)};
  }
  static std::vector<Expert> mirrored(Operands& on, std::span<const Expert> experts) {
    std::vector<Expert> local;
    for (const Expert& e : experts) local.push_back({on.in(e.gate), on.in(e.up), on.in(e.down)});
    return local;
  }
  static ExpertMlp mirrored(Operands& on, const ExpertMlp& op, const std::vector<Expert>& local) {
    return {on.in(op.x),     on.in(op.experts), on.in(op.weights), local,
            op.first_expert, on.out(op.y),      op.activations};
  }
  static KvCache cache(Operands& on, const KvCache& c, bool output) {
    return {output ? on.out(c.k) : on.in(c.k), output ? on.out(c.v) : on.in(c.v), c.kv_heads,
            c.block_tokens};
  }

  template <class Op>
  void run(Operands& on, const Op& op) {
    gpu_->run(op);
    gpu_->wait();
    on.finish();
  }

  std::shared_ptr<Backend> gpu_;
  Rows rows_;
};

}  // namespace

std::unique_ptr<Backend> make_mirror(std::shared_ptr<Backend> gpu, Rows rows) {
  return std::make_unique<Mirror>(std::move(gpu), rows);
}

}  // namespace ostro::ops::testing
