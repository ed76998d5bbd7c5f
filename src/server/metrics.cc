#include "server/metrics.h"

#include <dirent.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>

namespace ostro::server {
namespace {

const std::vector<double> kLongSeconds = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
                                          0.5,   1,      2.5,   5,    10,    30,   60,  300};
const std::vector<double> kShortSeconds = {0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005,
                                           0.01,   0.02,    0.03,   0.05,  0.075,  0.1,
                                           0.15,   0.25,    0.5,    1,     2.5};

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.10g", value);
  return text;
}

void head(const char* name, const char* type, const char* help, std::string& out) {
  out += std::string("# HELP ") + name + ' ' + help + "\n# TYPE " + name + ' ' + type + '\n';
}

void line(const std::string& name, double value, std::string& out) {
  out += name + ' ' + number(value) + '\n';
}

void gauge(const char* name, double value, const char* help, std::string& out) {
  head(name, "gauge", help, out);
  line(name, value, out);
}

void counter(const char* name, double value, const char* help, std::string& out) {
  head(name, "counter", help, out);
  line(name, value, out);
}

// Pages of virtual and resident memory.
std::pair<std::int64_t, std::int64_t> memory_pages() {
  std::ifstream in("/proc/self/statm");
  std::pair<std::int64_t, std::int64_t> pages{0, 0};
  in >> pages.first >> pages.second;
  return pages;
}

std::int64_t open_descriptors() {
  DIR* folder = ::opendir("/proc/self/fd");
  if (!folder) return 0;
  std::int64_t n = -3;  // "." and ".." and the folder itself
  while (::readdir(folder)) ++n;
  ::closedir(folder);
  return n;
}

void write_process(std::string& out) {
  const auto [total, resident] = memory_pages();
  const double page = double(::sysconf(_SC_PAGESIZE));
  gauge("process_resident_memory_bytes", double(resident) * page, "Memory of rank 0 in use.", out);
  gauge("process_virtual_memory_bytes", double(total) * page, "Address space of rank 0.", out);
  gauge("process_open_fds", double(open_descriptors()), "Open file descriptors.", out);
}

void write_executor(const ExecutorStatistics& s, std::string& out) {
  gauge("ostro_requests_waiting", double(s.queued), "Requests that have not started.", out);
  gauge("ostro_requests_running", double(s.open - s.queued),
        "Requests that have started and not ended.", out);
  counter("ostro_requests_accepted_total", double(s.accepted), "Requests put in the queue.", out);
  counter("ostro_requests_rejected_total", double(s.rejected),
          "Requests that the executor did not take.", out);
  const char* ended = "ostro_requests_ended_total";
  head(ended, "counter", "Requests that ended, by how; a stop string cancels what is left.", out);
  line(std::string(ended) + "{outcome=\"finished\"}", double(s.finished), out);
  line(std::string(ended) + "{outcome=\"cancelled\"}", double(s.cancelled), out);
  line(std::string(ended) + "{outcome=\"timed_out\"}", double(s.timed_out), out);
  line(std::string(ended) + "{outcome=\"failed\"}", double(s.failed), out);
  counter("ostro_prompt_tokens_total", double(s.prompt_tokens),
          "Prompt tokens of the requests that started.", out);
  counter("ostro_prompt_tokens_reused_total", double(s.reused_tokens),
          "Prompt tokens found in the KV cache.", out);
  counter("ostro_output_tokens_total", double(s.output_tokens), "Tokens generated.", out);
  counter("ostro_pauses_total", double(s.pauses), "Sequences whose KV cache was taken away.", out);
  counter("ostro_steps_total", double(s.iterations), "Steps computed.", out);
  counter("ostro_busy_seconds_total", s.busy_s, "Time inside steps.", out);
  gauge("ostro_kv_blocks", double(s.kv_blocks_total), "Blocks of the KV cache.", out);
  gauge("ostro_kv_blocks_used", double(s.kv_blocks_used), "Blocks that requests hold.", out);
  gauge("ostro_kv_blocks_cached", double(s.kv_blocks_cached),
        "Blocks that nobody holds, good for reuse.", out);
  gauge("ostro_kv_block_tokens", double(s.kv_block_tokens), "Tokens of a block.", out);
  gauge("ostro_kv_hit_rate",
        s.prompt_tokens > 0 ? double(s.reused_tokens) / double(s.prompt_tokens) : 0,
        "Part of all prompt tokens that was found in the KV cache.", out);
  if (s.expert_tokens.empty()) return;
  const char* chosen = "ostro_expert_tokens_total";
  head(chosen, "counter", "Computed tokens that chose an expert, each top_k of a layer.", out);
  for (std::size_t layer = 0; layer < s.expert_tokens.size(); ++layer)
    for (std::size_t e = 0; e < s.expert_tokens[layer].size(); ++e)
      line(std::string(chosen) + "{layer=\"" + std::to_string(layer) + "\",expert=\"" +
               std::to_string(e) + "\"}",
           double(s.expert_tokens[layer][e]), out);
}

}  // namespace

Histogram::Histogram(std::vector<double> bounds)
    : bounds_(std::move(bounds)), counts_(bounds_.size() + 1) {}

void Histogram::observe(double value) {
  const auto at = std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin();
  ++counts_[std::size_t(at)];
  sum_ += value;
}

void Histogram::write(const char* name, const char* help, std::string& out) const {
  head(name, "histogram", help, out);
  std::int64_t below = 0;
  for (std::size_t i = 0; i < counts_.size(); ++i) {
    below += counts_[i];
    const std::string bound = i < bounds_.size() ? number(bounds_[i]) : "+Inf";
    line(std::string(name) + "_bucket{le=\"" + bound + "\"}", double(below), out);
  }
  line(std::string(name) + "_sum", sum_, out);
  line(std::string(name) + "_count", double(below), out);
}

Metrics::Metrics()
    : queue_(kLongSeconds),
      first_token_(kLongSeconds),
      per_token_(kShortSeconds),
      gap_(kShortSeconds),
      whole_(kLongSeconds),
      step_(kShortSeconds) {}

void Metrics::count_exchange(const std::string& route, int status, bool complete) {
  ++exchanges_[{route, status}];
  if (!complete) ++disconnects_;
}

void Metrics::observe_step(const IterationStatistics& s) { step_.observe(s.step_s); }

void Metrics::observe_request(const RequestStatistics& s, std::int64_t sequences) {
  if (s.started_s >= 0) queue_.observe(s.started_s);
  if (s.finished_s >= 0) whole_.observe(s.finished_s);
  if (s.first_token_s < 0) return;
  first_token_.observe(s.first_token_s);
  const double after_first = double(s.output_tokens) / double(sequences) - 1;
  if (after_first > 0) per_token_.observe((s.finished_s - s.first_token_s) / after_first);
}

std::string Metrics::text(const ExecutorStatistics& s, std::size_t connections,
                          bool draining) const {
  std::string out;
  const char* http = "ostro_http_requests_total";
  head(http, "counter", "HTTP requests answered, by route and status.", out);
  for (const auto& [key, count] : exchanges_)
    line(std::string(http) + "{route=\"" + key.first + "\",status=\"" + std::to_string(key.second) +
             "\"}",
         double(count), out);
  counter("ostro_http_disconnects_total", double(disconnects_),
          "Clients that left, or were cut off, before their answer was complete.", out);
  gauge("ostro_http_connections", double(connections), "Open connections.", out);
  gauge("ostro_draining", draining, "1 while the server finishes what runs and takes no more.",
        out);
  write_executor(s, out);
  queue_.write("ostro_queue_seconds", "From arrival to the first step of a request.", out);
  first_token_.write("ostro_time_to_first_token_seconds", "From arrival to the first token.", out);
  per_token_.write("ostro_time_per_output_token_seconds",
                   "Mean time between tokens of a request, after the first.", out);
  gap_.write("ostro_inter_token_seconds", "Time between two responses of a sequence.", out);
  whole_.write("ostro_request_seconds", "From arrival to the last token.", out);
  step_.write("ostro_step_seconds", "Time of a step.", out);
  write_process(out);
  return out;
}

}  // namespace ostro::server
