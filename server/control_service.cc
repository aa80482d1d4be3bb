#include "server/control_service.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "scheduler/loop_status.h"
#include "scheduler/request_queue.h"
#include "scheduler/scheduler_stats.h"
#include "server/grpc_status.h"
#include "server/version.h"

namespace binarymos {
namespace {

int64_t CapacityTokens(const CacheConfig& cache) {
  return static_cast<int64_t>(cache.num_blocks) * cache.block_size;
}

void Describe(const ServedModel& model, v1::ModelInfo& out) {
  const ModelInfo& info = model.engine().info();
  out.set_name(model.name());
  out.set_architecture(info.architecture);
  out.set_quant_method(info.quant_method);
  out.set_device(info.device);
  out.set_num_experts(info.num_experts);
  out.set_vocab_size(info.vocab_size);
  out.set_hidden_size(info.hidden_size);
  out.set_num_layers(info.num_layers);
  out.set_num_heads(info.num_heads);
  out.set_num_kv_heads(info.num_kv_heads);
  out.set_max_model_len(model.max_positions());
  out.set_num_parameters(info.num_parameters);
  out.set_weight_bytes(info.weight_bytes);
  out.set_bits_per_weight(info.bits_per_weight);
  out.set_kv_cache_dtype(info.kv_cache_dtype);
  out.set_kv_bytes_per_token(info.kv_bytes_per_token);
  out.set_kv_capacity_tokens(CapacityTokens(model.engine().cache_config()));
  const std::vector<TokenId>& eos = model.engine().eos_tokens();
  out.mutable_eos_token_ids()->Add(eos.begin(), eos.end());
  out.set_bos_token_id(model.tokenizer().bos());
}

void Describe(const ServedModel& model, v1::GetLoadResponse& out) {
  const CacheConfig& cache = model.engine().cache_config();
  const SchedulerStats stats = model.loop().status().stats();
  const int num_used = stats.num_blocks - stats.num_free_blocks;
  out.set_num_running(stats.num_running);
  // The queue knows requests that have not reached the scheduler, the scheduler
  // those that it has preempted; most are known to both.
  out.set_num_waiting(
      std::max(stats.num_waiting, model.loop().queue().num_waiting()));
  out.set_max_running(cache.max_num_seqs);
  out.set_max_waiting(model.limits().max_waiting_requests);
  out.set_kv_cache_usage(stats.kv_usage());
  out.set_kv_used_tokens(static_cast<int64_t>(num_used) * cache.block_size);
  out.set_kv_capacity_tokens(CapacityTokens(cache));
  out.set_num_preemptions(stats.num_preemptions);
  out.set_num_generated_tokens(stats.num_generated_tokens);
  out.set_num_prompt_tokens(stats.num_prompt_tokens);
  const std::chrono::duration<double> wait =
      model.loop().queue().EstimatedWait({.num_tokens = 1});
  out.set_estimated_wait_seconds(wait.count());
}

grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* rpc,
                                 const absl::Status& status) {
  grpc::ServerUnaryReactor* const reactor = rpc->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

}  // namespace

ControlService::ControlService(Options options, const ModelRegistry* registry,
                               GenerationService* generation)
    : options_(std::move(options)),
      registry_(registry),
      generation_(generation) {}

grpc::ServerUnaryReactor* ControlService::GetServerInfo(
    grpc::CallbackServerContext* rpc,
    const v1::GetServerInfoRequest* /*request*/,
    v1::GetServerInfoResponse* response) {
  response->set_version(Version());
  response->set_git_commit(GitCommit());
  response->set_compiler(Compiler());
  const std::chrono::duration<double> uptime =
      std::chrono::steady_clock::now() - options_.start_time;
  response->set_uptime_seconds(uptime.count());
  response->set_draining(options_.draining());
  for (const std::string& service : options_.services) {
    response->add_services(service);
  }
  return Answer(rpc, absl::OkStatus());
}

grpc::ServerUnaryReactor* ControlService::ListModels(
    grpc::CallbackServerContext* rpc, const v1::ListModelsRequest* /*request*/,
    v1::ListModelsResponse* response) {
  for (const ServedModel* model : registry_->All()) {
    response->add_models(model->name());
  }
  return Answer(rpc, absl::OkStatus());
}

grpc::ServerUnaryReactor* ControlService::GetModelInfo(
    grpc::CallbackServerContext* rpc, const v1::GetModelInfoRequest* request,
    v1::ModelInfo* response) {
  const absl::StatusOr<ServedModel*> model = registry_->Find(request->model());
  if (model.ok()) Describe(**model, *response);
  return Answer(rpc, model.status());
}

grpc::ServerUnaryReactor* ControlService::GetLoad(
    grpc::CallbackServerContext* rpc, const v1::GetLoadRequest* request,
    v1::GetLoadResponse* response) {
  const absl::StatusOr<ServedModel*> model = registry_->Find(request->model());
  if (model.ok()) Describe(**model, *response);
  return Answer(rpc, model.status());
}

grpc::ServerUnaryReactor* ControlService::Abort(
    grpc::CallbackServerContext* rpc, const v1::AbortRequest* request,
    v1::AbortResponse* response) {
  response->set_num_found(generation_->Abort(
      {request->request_ids().begin(), request->request_ids().end()}));
  return Answer(rpc, absl::OkStatus());
}

grpc::ServerUnaryReactor* ControlService::Drain(
    grpc::CallbackServerContext* rpc, const v1::DrainRequest* /*request*/,
    v1::DrainResponse* /*response*/) {
  options_.drain();
  return Answer(rpc, absl::OkStatus());
}

grpc::ServerUnaryReactor* ControlService::FlushPrefixCache(
    grpc::CallbackServerContext* rpc,
    const v1::FlushPrefixCacheRequest* request,
    v1::FlushPrefixCacheResponse* /*response*/) {
  const absl::StatusOr<ServedModel*> model = registry_->Find(request->model());
  if (model.ok()) (*model)->loop().queue().Push(FlushPrefixCacheCommand{});
  return Answer(rpc, model.status());
}

}  // namespace binarymos
