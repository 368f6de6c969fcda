constexpr size_t kMaxBatch = {{ bounds.batch_size }};  // --max-batch
constexpr size_t kMaxSource = {{ bounds.source }};  // tokens of a source: --max-length
constexpr size_t kMaxLength = {{ bounds.total }};  // what the decoder's cache holds
constexpr int64_t kPad = {{ tokens.pad }}, kEnd = {{ tokens.end }}, kStart = {{ tokens.start }};  // generation_config.json

Rows translate(Module& program, const Rows& sources, size_t new_tokens) {
  const auto [ids, mask] = padded(sources, kPad, /*left=*/false);
  if (ids.size() > kMaxBatch || ids[0].size() > kMaxSource || new_tokens > kMaxLength) {
    throw std::length_error("past a bound");
  }
  const TensorPtr source_mask = tensor(mask);
  // Once for each batch of sources. The decoder reads these tensors where the encoder left them.
  const auto cross = run(program, "encoder", { {{- encoder_inputs -}} });
  Rows step(ids.size(), {kStart}), step_mask(ids.size(), {1}), said(ids.size());
  std::vector<bool> done(ids.size(), false);
  // The first mask is as long as the first tokens: that is the reset. Each later one is longer by one.
  for (size_t count = 0; count < new_tokens; ++count) {
    const auto outputs = run(
        program,
        "{{ method }}",
        {
{% for line in inputs %}
            {{ line }}
{% endfor %}
        });
    const auto next = likeliest(outputs[{{ logits }}]);
    for (size_t row = 0; row < next.size(); ++row) {
      step[row][0] = done[row] ? kPad : next[row];
      if (!done[row]) said[row].push_back(next[row]);
      done[row] = done[row] || next[row] == kEnd;
      step_mask[row].push_back(1);
    }
    if (std::count(done.begin(), done.end(), false) == 0) break;
  }
  return said;
}

// {{ name }} model.pte 16 "1 57 12" "1 9"
int main(int count, char** arguments) {
  Module program(arguments[1]);  // its methods must not share their arenas: share_memory_arenas stays false
  print(translate(program, texts(count - 1, arguments + 1), std::stoul(arguments[2])));
}
