constexpr size_t kMaxBatch = {{ bounds.batch_size }};  // --max-batch
constexpr size_t kMaxLength = {{ bounds.sequence_length }};  // --max-length, or what the model can
constexpr int64_t kPad = {{ tokens.pad }};  // config.json

// {{ name }} model.pte "1 57 12" "1 9"
int main(int count, char** arguments) {
  Module program(arguments[1]);
  const auto [ids, mask] = padded(texts(count, arguments), kPad, /*left=*/false);
  if (ids.size() > kMaxBatch || ids[0].size() > kMaxLength) throw std::length_error("past a bound");
  const auto outputs = run(program, "{{ method }}", { {{- inputs -}} });
  // {{ output.name }}: ({{ output.shape }}) {{ output.dtype }}
  const auto scores = outputs[{{ output.index }}].toTensor();
  const float* score = scores.const_data_ptr<float>();
  for (ssize_t row = 0; row < scores.size(0); ++row) {
    for (ssize_t label = 0; label < scores.size(1); ++label) std::printf("%f ", *score++);
    std::printf("\n");
  }
}
