#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

using executorch::extension::make_tensor_ptr;
using executorch::extension::Module;
using executorch::extension::TensorPtr;
using executorch::runtime::EValue;
using Rows = std::vector<std::vector<int64_t>>;

// (rows, length) int64 from rows of one length. The tensor owns its numbers; from_blob would borrow them.
TensorPtr tensor(const Rows& rows) {
  std::vector<int64_t> flat;
  for (const auto& row : rows) flat.insert(flat.end(), row.begin(), row.end());
  return make_tensor_ptr({int32_t(rows.size()), int32_t(rows.at(0).size())}, std::move(flat));
}

// As many zeros, for token types.
Rows zeros(const Rows& rows) { return Rows(rows.size(), std::vector<int64_t>(rows.at(0).size(), 0)); }

// The texts at one length, and the mask over them: 1 at a token, 0 at padding.
std::pair<Rows, Rows> padded(const Rows& texts, int64_t pad, bool left) {
  size_t length = 0;
  for (const auto& text : texts) length = std::max(length, text.size());
  Rows ids, mask;
  for (const auto& text : texts) {
    ids.emplace_back(length, pad);
    mask.emplace_back(length, 0);
    const size_t begin = left ? length - text.size() : 0;
    std::copy(text.begin(), text.end(), ids.back().begin() + begin);
    std::fill_n(mask.back().begin() + begin, text.size(), 1);
  }
  return {ids, mask};
}

// A method by its name. The outputs lie in the method's own memory: they are good until it runs again.
std::vector<EValue> run(Module& program, const std::string& method, const std::vector<EValue>& inputs) {
  auto outputs = program.execute(method, inputs);
  if (!outputs.ok()) throw std::runtime_error(method + ": ExecuTorch error " + std::to_string(int(outputs.error())));
  return std::move(outputs.get());
}

// The likeliest token of each row at its last position; logits are (rows, length, vocabulary) float32.
std::vector<int64_t> likeliest(const EValue& logits) {
  const auto scores = logits.toTensor();
  const auto length = scores.size(1), vocabulary = scores.size(2);
  std::vector<int64_t> tokens;
  for (ssize_t row = 0; row < scores.size(0); ++row) {
    const float* last = scores.const_data_ptr<float>() + ((row + 1) * length - 1) * vocabulary;
    tokens.push_back(std::max_element(last, last + vocabulary) - last);
  }
  return tokens;
}

// The arguments from the third on, each a text: token ids with spaces between them, from your tokenizer.
Rows texts(int count, char** arguments) {
  Rows rows;
  for (int index = 2; index < count; ++index) {
    std::istringstream words(arguments[index]);
    rows.emplace_back();
    for (int64_t token; words >> token;) rows.back().push_back(token);
  }
  return rows;
}

void print(const Rows& rows) {
  for (const auto& row : rows) {
    for (const auto token : row) std::printf("%lld ", static_cast<long long>(token));
    std::printf("\n");
  }
}
