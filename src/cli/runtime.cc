#include "cli/runtime.h"

#include <sched.h>
#include <sys/resource.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <nlohmann/json.hpp>

#include "api/make_cuda_backend.h"
#include "backends/cpu/backend.h"
#include "base/file.h"
#include "base/host.h"
#include "base/trace.h"
#include "builder/dummy_source.h"
#include "checkpoint/checksum.h"
#include "cli/gpus.h"
#include "cli/version.h"
#include "comm/local/launch.h"
#include "comm/mpi_launch.h"
#include "engine/roll_call.h"
#include "model/tactics_file.h"

namespace ostro::cli {
namespace {

std::string command_line;

// The cores that this rank may use: its share of the process's. mpirun binds each of two ranks to
// one core of however many there are, so there the binding is widened to the rank's share of the
// host first.
int cores_of_rank(const comm::World& world) {
  cpu_set_t all;
  const int here = world.ranks_on_this_host();
  if (here == 1 || !comm::mpi_launch()) {
    if (::sched_getaffinity(0, sizeof(all), &all) != 0) return 1;
    return std::max(1, CPU_COUNT(&all) / here);
  }
  std::memset(&all, 0xff, sizeof(all));  // the kernel keeps those that the process is allowed
  if (::sched_setaffinity(0, sizeof(all), &all) != 0 ||
      ::sched_getaffinity(0, sizeof(all), &all) != 0)
    return 1;
  const Range share = part_of(CPU_COUNT(&all), world.rank_on_this_host(), here);
  if (share.size() == 0) return 1;
  cpu_set_t mine;
  CPU_ZERO(&mine);
  std::int64_t index = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &all) && share.contains(index++)) CPU_SET(cpu, &mine);
  ::sched_setaffinity(0, sizeof(mine), &mine);
  return int(share.size());
}

// What `ostro build` would write for the shape.
model::EngineConfig dummy_config(const RuntimeFlags& flags) {
  model::EngineConfig e;
  e.model = flags.shape.model();
  flags.shape.apply(e.model);
  if (flags.dtype != "auto") e.model.dtype = model::parse_dtype(flags.dtype);
  e.model.quantization = flags.quantisation.quantization();
  model::check(e.model);
  e.limits.max_input_len = e.limits.max_output_len = e.model.context;
  e.dummy = true;
  return e;
}

void check_device(const std::string& device) {
  OSTRO_REQUIRE(device == "auto" || device == "cpu" || device == "cuda", "--device is \"", device,
                "\"; it must be auto, cpu or cuda");
  OSTRO_SUPPORTED(device != "cuda" || api::built_with_cuda(),
                  "this build has no CUDA backend; it has: cpu");
}

// A rank's device, and how many ranks share it.
struct DeviceOfRank {
  std::unique_ptr<ops::Backend> backend;
  int ranks = 1;
};

// The GPU of this rank, if --device asks for one.
Place place_rank(const RuntimeFlags& flags, comm::Communicator& world) {
  const char* const visible = std::getenv("CUDA_VISIBLE_DEVICES");
  const RankGpus mine{
      .host = host_name(),
      .visible = visible ? visible : "",
      .gpus = flags.device == "cpu" ? std::vector<std::string>{} : api::cuda_devices()};
  return place(exchange_gpus(world, mine), world.rank(), flags.share_gpus);
}

DeviceOfRank make_backend(const RuntimeFlags& flags, comm::World& world, const Log& log) {
  const Place place = place_rank(flags, world.communicator());
  DeviceOfRank d;
  if (flags.device == "cuda") {
    OSTRO_REQUIRE(place.problem.empty(), place.problem);
    d.backend = api::make_cuda_backend(std::max(place.device, 0));
  } else if (!place.problem.empty()) {
    log.warning("the GPUs are not used: ", place.problem);
  } else if (flags.device == "auto") {
    d.backend = api::find_cuda_backend(log, std::max(place.device, 0));
  }
  d.ranks = d.backend ? place.ranks : world.ranks_on_this_host();
  const int cores = cores_of_rank(world);
  if (!d.backend)
    d.backend = cpu::make_backend({.threads = flags.threads > 0 ? flags.threads : cores,
                                   .isa = "auto",
                                   .emulate_e4m3_activations = flags.emulate_fp8_activations});
  return d;
}

// What this rank says of how it could talk.
RankNccl nccl_of(const RuntimeFlags& flags, const DeviceOfRank& device) {
  using Gpu = RankNccl::Gpu;
  RankNccl mine{.gpu = device.backend->device() == Device::cpu ? Gpu::none
                       : device.ranks > 1                      ? Gpu::shared
                                                               : Gpu::own,
                .version = {},
                .error = {}};
  if (mine.gpu != Gpu::own || flags.comm == "host") return mine;
  try {
    mine.version = api::nccl_version();
  } catch (const Unsupported& e) {
    mine.error = e.what();
  }
  return mine;
}

// How the ranks' GPUs talk: empty for through host memory.
api::GroupMaker device_groups(const RuntimeFlags& flags, const DeviceOfRank& device,
                              comm::Communicator& world, const Log& log) {
  if (world.ranks() == 1) return {};
  const std::vector<RankNccl> all = exchange_nccl(world, nccl_of(flags, device));
  const CommChoice choice = choose_comm(flags.comm, all);
  const bool leads = world.rank() == 0;
  if (!choice.nccl) {
    if (leads && !choice.reason.empty())
      log.warning("the GPUs talk through host memory: ", choice.reason);
    if (leads) log.info("ranks talk through host memory");
    return {};
  }
  const auto peer_memory = flags.comm == "peer"   ? api::PeerMemory::always
                           : flags.comm == "nccl" ? api::PeerMemory::never
                                                  : api::PeerMemory::where_possible;
  return api::make_nccl_groups(*device.backend, world.rank(), flags.peers.stall_seconds,
                               peer_memory, log);
}

void check_shape(const RuntimeFlags& flags) {
  OSTRO_REQUIRE(flags.dummy_weights ||
                    (!flags.shape.given() && flags.dtype == "auto" && !flags.quantisation.given()),
                "--preset, --dtype, --enable_fp8, --fp8_kv_cache, --use_weight_only and the shape "
                "flags (--n_layer, ...) go with --dummy_weights: an engine has its own");
}

// 0 stands for what is not given.
void check_sizes(const RuntimeFlags& flags) {
  const std::pair<const char*, std::int64_t> sizes[] = {
      {"--tp_size", flags.tp_size},
      {"--pp_size", flags.pp_size},
      {"--moe_ep_size", flags.moe_ep_size},
      {"--threads", flags.threads},
      {"--max_batch_size", flags.max_batch_size},
      {"--max_num_tokens", flags.max_num_tokens},
      {"--max_tokens_in_paged_kv_cache", flags.kv_tokens}};
  for (const auto& [flag, value] : sizes)
    OSTRO_REQUIRE(value >= 0, flag, " is ", value, "; it must be at least 1");
  OSTRO_REQUIRE(flags.kv_fraction >= 0 && flags.kv_fraction <= 1,
                "--kv_cache_free_gpu_memory_fraction is ", flags.kv_fraction,
                "; it must be in (0, 1]");
  OSTRO_REQUIRE(
      flags.comm == "auto" || flags.comm == "peer" || flags.comm == "nccl" || flags.comm == "host",
      "--comm is \"", flags.comm, "\"; it must be auto, peer, nccl or host");
  const double stall = flags.peers.stall_seconds;
  OSTRO_REQUIRE(stall >= 1 && stall <= 86400, "--comm_timeout is ", stall,
                "; it must be from 1 to 86400");
  const double timeout = flags.peers.timeout_seconds;
  OSTRO_REQUIRE(timeout == 0 || (timeout >= 0.1 && timeout <= 86400), "--peer_timeout is ", timeout,
                "; it must be 0 (off) or from 0.1 to 86400");
}

void print_error(std::string_view message) {
  const std::string line = text("ostro: error: ", message, '\n');
  std::fwrite(line.data(), 1, line.size(), stderr);
}

// What is to be run.
struct Opened {
  std::unique_ptr<checkpoint::EngineReader> engine;  // empty for --dummy_weights
  model::EngineConfig config;
  model::Mapping mapping;

  Opened(const RuntimeFlags& flags, checkpoint::Absent absent)
      : engine(flags.dummy_weights
                   ? nullptr
                   : std::make_unique<checkpoint::EngineReader>(flags.engine_dir, absent)),
        config(engine ? read_config(*engine) : dummy_config(flags)),
        mapping(chosen_mapping(flags, config)) {
    OSTRO_REQUIRE(!flags.emulate_fp8_activations ||
                      config.model.quantization.weights == model::Quantization::Format::fp8,
                  "--emulate_fp8_activations goes with fp8 weights, but those of this engine are ",
                  model::dtype_flag(config.model.dtype));
    if (flags.fp8_prompts) engine::check_fp8_prompts(config.model, mapping);
  }
};

// As one of mpirun's ranks.
Opened open_part(const RuntimeFlags& flags, const comm::MpiLaunch& launch) {
  check_device(flags.device);
  if (launch.rank == 0) check_can_be_written(flags.trace);
  Opened opened(flags, checkpoint::Absent::allowed);
  const std::int64_t wanted = opened.mapping.ranks();
  OSTRO_REQUIRE(launch.ranks == wanted, "the engine needs ", wanted,
                wanted == 1 ? " rank" : " ranks", ", mpirun started ", launch.ranks,
                "; run: mpirun -n ", wanted, ' ', command_line);
  if (opened.engine && opened.mapping == opened.config.mapping)
    for (const std::string& name : opened.engine->absent())
      OSTRO_REQUIRE(name != checkpoint::rank_file_name(launch.rank), "the engine ",
                    flags.engine_dir, " lacks ", name, ", this rank's part: copy it to this host");
  return opened;
}

// What this rank is for the roll call; `opened` is empty if the engine cannot be opened.
engine::RankCard rank_card(const RuntimeFlags& flags, const comm::MpiLaunch& launch,
                           std::optional<Opened>& opened) {
  engine::RankCard card{.host = host_name(), .version = kVersion};
  try {
    opened.emplace(open_part(flags, launch));
  } catch (...) {
    const Failure failure = failure_at_hand();
    card.error_code = failure.code;
    card.error = failure.message;
    return card;
  }
  const model::Mapping& m = opened->mapping;
  checkpoint::Checksum sum;
  const std::string config =
      opened->engine ? opened->engine->config_text() : model::to_json(opened->config, {}).dump();
  sum.add(std::as_bytes(std::span(config)));
  card.dtype = model::dtype_flag(opened->config.model.dtype);
  card.layout =
      text("tp ", m.tp, " x pp ", m.pp, " (experts: tp ", m.moe_tp, " x ep ", m.moe_ep, ')');
  card.engine = sum.text();
  card.limits =
      text("--max_batch_size ", flags.max_batch_size, " --max_num_tokens ", flags.max_num_tokens);
  return card;
}

void warn_of_dummy_weights() {
  std::fputs("ostro: this engine has dummy weights: what it generates means nothing\n", stderr);
}

// A trace for this rank if --trace asks for one: on all ranks or on none.
std::optional<Trace> start_trace(const RuntimeFlags& flags, comm::Communicator& world) {
  if (flags.trace.empty()) return std::nullopt;
  std::int64_t zero_us = Trace::now_us();
  world.broadcast(std::as_writable_bytes(std::span(&zero_us, 1)), 0);
  return Trace(zero_us);
}

// Collects the spans of all ranks in one file, which rank 0 writes.
void write_trace(const RuntimeFlags& flags, const Trace& trace, const model::ModelConfig& config,
                 const model::Mapping& mapping, comm::Communicator& world) {
  const model::RankShape shape = model::shape_of(config, mapping, world.rank());
  std::string spans = trace.events(
      world.rank(), text("rank ", world.rank(), ": stage ", shape.stage, ", tp ", shape.tp_rank));
  std::uint64_t bytes = spans.size();
  const auto size = matrix(&bytes, DType::u8, 1, sizeof(bytes));
  const auto data = [&] { return matrix(spans.data(), DType::u8, 1, std::int64_t(bytes)); };
  if (world.rank() != 0) {
    world.send(size, 0);
    world.send(data(), 0);
    return;
  }
  std::string all = "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n" + spans;
  for (int rank = 1; rank < world.ranks(); ++rank) {
    world.receive(size, rank);
    spans.resize(bytes);
    world.receive(data(), rank);
    all += ",\n" + spans;
  }
  all += "\n]}\n";
  replace_file(flags.trace, {std::as_bytes(std::span(all))});
}

void run_rank(const RuntimeFlags& flags, std::int64_t max_logit_rows, model::WeightSource& weights,
              const model::EngineConfig& config, const model::Mapping& mapping, comm::World& world,
              const Log& log, const std::function<void(Session&)>& lead) {
  const DeviceOfRank device = make_backend(flags, world, log);
  if (!flags.dummy_weights)
    model::use_tactics(flags.engine_dir, *device.backend,
                       world.communicator().rank() == 0 ? log : Log{});
  std::optional<Trace> trace = start_trace(flags, world.communicator());
  engine::Rank rank(weights, config, mapping, *device.backend, world.communicator(),
                    {.max_batch_size = flags.max_batch_size,
                     .max_num_tokens = flags.max_num_tokens,
                     .max_logit_rows = max_logit_rows,
                     .kv_cache_tokens = flags.kv_tokens,
                     .kv_cache_free_fraction = flags.kv_fraction,
                     .ranks_on_device = device.ranks,
                     .record_steps = flags.cuda_graphs,
                     .fp8_prompts = flags.fp8_prompts,
                     .trace = trace ? &*trace : nullptr,
                     .device_group = device_groups(flags, device, world.communicator(), log)},
                    log);
  if (rank.leads()) {
    Session session{config, rank, *device.backend, log};
    lead(session);
    rank.end();
  } else {
    rank.follow();
  }
  if (trace) write_trace(flags, *trace, config.model, mapping, world.communicator());
}

}  // namespace

void RuntimeFlags::add(CLI::App& app) {
  app.add_option("--engine_dir", engine_dir, "the engine that `ostro build` wrote")
      ->capture_default_str();
  app.add_flag("--dummy_weights", dummy_weights,
               "no engine: weights drawn at random for the shape below, where they are used");
  shape.add(app, "Shape with --dummy_weights (default: LLaMA-7B)");
  app.add_option("--dtype", dtype, "with --dummy_weights: auto, float32, float16 or bfloat16")
      ->capture_default_str()
      ->group("Shape with --dummy_weights (default: LLaMA-7B)");
  quantisation.add(app, "Shape with --dummy_weights (default: LLaMA-7B)", "with --dummy_weights: ");
  app.add_option("--device", device, "auto (a GPU if there is one), cpu or cuda")
      ->capture_default_str();
  app.add_flag("--share_gpus", share_gpus, "ranks of a host may share its GPUs");
  app.add_option("--comm", comm,
                 "how ranks on GPUs talk: nccl, peer (nccl, but ranks of a host sum in each "
                 "other's GPU memory), host (through host memory), or auto (peer where it can be, "
                 "else nccl, else host)")
      ->capture_default_str();
  app.add_option("--comm_timeout", peers.stall_seconds,
                 "seconds that a call inside a step waits for a rank that lives but does not come")
      ->capture_default_str();
  app.add_option("--tp_size", tp_size, "tensor-parallel ranks; default: the engine's");
  app.add_option("--pp_size", pp_size, "pipeline stages; default: the engine's");
  app.add_option("--moe_ep_size", moe_ep_size,
                 "groups of tensor-parallel ranks that hold different experts; default: the "
                 "engine's, where --tp_size allows it");
  app.add_option("--threads", threads,
                 "threads a rank; default: the cores of this host / its ranks");
  app.add_option("--max_batch_size", max_batch_size,
                 "requests at a time, at most the engine's; default: that, or 256 on a CPU");
  app.add_option("--max_num_tokens", max_num_tokens,
                 "tokens at a time, at most the engine's; default: that");
  app.add_option(
      "--kv_cache_free_gpu_memory_fraction", kv_fraction,
      "part of the free memory for the KV cache; default: 0.9 of a GPU's, 0.5 of a CPU's");
  app.add_option("--max_tokens_in_paged_kv_cache", kv_tokens,
                 "tokens in the KV cache; default: as many as fit");
  app.add_option(
         "--cuda_graphs", cuda_graphs,
         "replay decode steps on a GPU as graphs, with one rank or over NCCL; the results are "
         "the same")
      ->capture_default_str();
  app.add_flag("--emulate_fp8_activations", emulate_fp8_activations,
               "a CPU rounds the activations of fp8 weights as a GPU does");
  app.add_flag(
      "--fp8_prompts", fp8_prompts,
      "round the activations of int4 weights to fp8 in steps of more than 256 tokens: faster "
      "prompts on a Hopper GPU; tokens then depend on the length of their steps");
  app.add_option("--trace", trace,
                 "write what every rank does when to this file: Chrome trace events (JSON)");
  app.add_option("--peer_timeout", peers.timeout_seconds,
                 "under mpirun: seconds of silence after which a rank counts as dead; 0: mpirun "
                 "alone watches")
      ->capture_default_str();
  app.add_option("--peer_network", peers.network,
                 "under mpirun: interface, network or address at which rank 0 listens for the "
                 "others; default: all");
  log.add(app, "warning");
}

model::Mapping chosen_mapping(const RuntimeFlags& flags, const model::EngineConfig& config) {
  model::Mapping m = config.mapping;
  if (flags.pp_size > 0) m.pp = flags.pp_size;
  if (flags.tp_size > 0 && flags.tp_size != m.tp) {
    m.tp = flags.tp_size;
    // Experts stay spread as far as the engine spread them, where the new size allows it.
    if (m.tp % m.moe_ep != 0) m.moe_ep = 1;
  }
  if (flags.moe_ep_size > 0) {
    OSTRO_REQUIRE(m.tp % flags.moe_ep_size == 0, "--moe_ep_size ", flags.moe_ep_size,
                  " does not divide the ", m.tp, " ranks of --tp_size");
    m.moe_ep = flags.moe_ep_size;
  }
  m.moe_tp = m.tp / m.moe_ep;
  model::check(m, config.model);
  return m;
}

model::EngineConfig read_config(const checkpoint::EngineReader& engine) {
  return model::parse_engine_config(engine.config_text(), (engine.dir() / "config.json").string());
}

model::EngineConfig config_of(const RuntimeFlags& flags) {
  if (flags.dummy_weights) return dummy_config(flags);
  return read_config(checkpoint::EngineReader(flags.engine_dir, checkpoint::Absent::allowed));
}

CapacityPolicy parse_capacity_policy(const std::string& policy) {
  OSTRO_REQUIRE(policy == "guaranteed_no_evict" || policy == "max_utilization",
                "--capacity_policy is \"", policy,
                "\"; it must be guaranteed_no_evict or max_utilization");
  return policy == "max_utilization" ? CapacityPolicy::max_utilization
                                     : CapacityPolicy::guaranteed_no_evict;
}

void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

bool prints() {
  const auto launch = comm::mpi_launch();
  return !launch || launch->rank == 0;
}

Failure failure_at_hand() {
  try {
    throw;
  } catch (const InvalidArgument& e) {
    return {2, e.what()};
  } catch (const Unsupported& e) {
    return {3, e.what()};
  } catch (const DeviceError& e) {
    return {4, e.what()};
  } catch (const std::bad_alloc&) {
    return {4, "the machine has no memory left"};
  } catch (const Error& e) {
    return {5, text("this is a bug in Ostro: ", e.what(), " (", e.where().file_name(), ':',
                    e.where().line(), ')')};
  } catch (const std::exception& e) {
    return {5, text("this is a bug in Ostro: ", e.what())};
  }
}

void remember_command_line(int argc, char** argv) {
  for (int i = 0; i < argc; ++i) {
    const std::string arg = argv[i];
    const bool plain = !arg.empty() && arg.find_first_of(" \t\n\"'\\$`*?;&|<>()#~") == arg.npos;
    std::string quoted = "'";
    for (char c : arg) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
    command_line += (i ? " " : "") + (plain ? arg : quoted + "'");
  }
}

int run_on_ranks(const RuntimeFlags& flags, std::int64_t max_logit_rows,
                 const std::function<void(Session&)>& lead) {
  const Log log = flags.log.log();
  // What ends the program is told whatever --log_level says.
  const Log errors(LogLevel::error, [](LogLevel, std::string_view m) { print_error(m); });
  check_sizes(flags);
  check_shape(flags);
  std::optional<Opened> opened;
  std::unique_ptr<comm::World> world;
  const auto launch = comm::mpi_launch();
  if (launch) {
    world = join_mpi(flags.peers, errors);
  } else {
    check_device(flags.device);
    check_can_be_written(flags.trace);
    opened.emplace(flags, checkpoint::Absent::refused);
    const auto ranks = int(opened->mapping.ranks());
    if (opened->config.dummy) warn_of_dummy_weights();
    world = ranks == 1 ? comm::make_single_world()
                       : comm::local::start_ranks(
                             ranks, {.stall_seconds = flags.peers.stall_seconds, .log = errors});
  }

  Failure failure{0, ""};
  try {
    if (launch) {
      engine::call_roll(world->communicator(), rank_card(flags, *launch, opened));
      if (opened->config.dummy && launch->rank == 0) warn_of_dummy_weights();
    }
    std::unique_ptr<model::WeightSource> weights;
    if (opened->engine)
      weights = std::make_unique<model::EngineWeights>(*opened->engine);
    else
      weights = std::make_unique<builder::DummySource>(opened->config.model);
    run_rank(flags, max_logit_rows, *weights, opened->config, opened->mapping, *world, log, lead);
  } catch (...) {
    failure = failure_at_hand();
  }
  std::fflush(stdout);
  const comm::Outcome end = world->finish(failure.code, failure.message);
  if (!end.message.empty()) print_error(end.message);
  return end.code;
}

}  // namespace ostro::cli
