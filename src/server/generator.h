// What the server needs of an ostro::Executor, so that tests can put another in its place.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "ostro/executor.h"

namespace ostro::server {

// The functions are those of Executor, with its contracts and thread rules.
class Generator {
 public:
  virtual ~Generator() = default;
  virtual Submission submit(Request) = 0;
  virtual Preparation prepare(const Guide&) = 0;
  virtual std::shared_ptr<const CompiledGuide> find_prepared(const Guide&) = 0;
  virtual std::vector<Response> await_responses(std::chrono::milliseconds timeout) = 0;
  virtual bool cancel(RequestId) = 0;
  virtual bool cancel(RequestId, std::int32_t sequence) = 0;
  virtual std::string failure() const = 0;
  virtual ExecutorStatistics statistics() const = 0;
  virtual std::vector<IterationStatistics> take_iteration_statistics() = 0;
};

}  // namespace ostro::server
