// Recorded work: CUDA graphs.
#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/launch.h"

namespace ostro::cuda {
namespace {

struct Graph final : ops::Recording {
  explicit Graph(std::int64_t moves_before) : moves(moves_before) {}
  ~Graph() override {
    if (executable) cudaGraphExecDestroy(executable);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  cudaGraphExec_t executable = nullptr;
  std::int64_t moves;  // of workspaces, when it was recorded
};

// Ends a capture whatever happens in it.
class Capture {
 public:
  explicit Capture(cudaStream_t stream) : stream_(stream) {
    OSTRO_CUDA(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed));
  }
  ~Capture() {
    if (!ended_) cudaStreamEndCapture(stream_, &graph_);
    if (graph_) cudaGraphDestroy(graph_);
  }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  cudaGraph_t end() {
    ended_ = true;
    OSTRO_CUDA(cudaStreamEndCapture(stream_, &graph_));
    return graph_;
  }

 private:
  cudaStream_t stream_;
  cudaGraph_t graph_ = nullptr;
  bool ended_ = false;
};

}  // namespace

std::unique_ptr<ops::Recording> CudaBackend::record(const std::function<void()>& work) {
  OSTRO_CUDA(cudaSetDevice(device_));
  auto graph = std::make_unique<Graph>(moves_);
  Capture capture(stream_);
  work();
  const cudaGraph_t captured = capture.end();
  if (moves_ != graph->moves) return nullptr;
  OSTRO_CUDA(cudaGraphInstantiate(&graph->executable, captured, 0));
  return graph;
}

bool CudaBackend::replay(const ops::Recording& recording) {
  const auto& graph = static_cast<const Graph&>(recording);
  if (graph.moves != moves_) return false;
  OSTRO_CUDA(cudaSetDevice(device_));
  OSTRO_CUDA(cudaGraphLaunch(graph.executable, stream_));
  return true;
}

}  // namespace ostro::cuda
