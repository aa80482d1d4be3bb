// Between the messages of inference.proto and the plain structs behind them.
#pragma once

#include <cstddef>
#include <string>

#include "binarymos/v1/inference.pb.h"
#include "engine/tokenizer.h"
#include "server/generation.h"
#include "server/generation_request.h"

namespace binarymos {

GenerationRequest FromProto(const v1::GenerateRequest& request);

// What every answer to one request has in common.
struct AnswerContext {
  const std::string& request_id;
  const std::string& model;
  const Tokenizer& tokenizer;  // for the bytes of tokens
};

// Appends an update to a message that has not been sent: deltas of one sample
// become one.
void MergeInto(const AnswerContext& context, GenerationUpdate update,
               v1::GenerateStreamResponse& message);

// Appends an update to the one answer of a unary call.
void MergeInto(const AnswerContext& context, GenerationUpdate update,
               v1::GenerateResponse& message);

// About how many bytes the output in `update` takes in a message. What depends
// on the prompt (echo, its log-probabilities) is not counted.
size_t OutputBytes(const GenerationUpdate& update);

}  // namespace binarymos
