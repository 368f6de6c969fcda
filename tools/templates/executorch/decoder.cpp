constexpr size_t kMaxBatch = {{ bounds.batch_size }};  // --max-batch
constexpr size_t kMaxLength = {{ bounds.total }};  // what the cache holds: prompt and new tokens together
constexpr int64_t kPad = {{ tokens.pad }}, kEnd = {{ tokens.end }};  // generation_config.json
{% if positions %}

// Each new token's number among its row's tokens; padding does not count.
Rows positions(const Rows& mask, size_t fresh) {
  Rows result;
  for (const auto& row : mask) {
    std::vector<int64_t> numbers;
    int64_t seen = 0;
    for (const auto bit : row) {
      seen += bit;
      numbers.push_back(std::max<int64_t>(seen - 1, 0));
    }
    result.emplace_back(numbers.end() - fresh, numbers.end());
  }
  return result;
}
{% endif %}

Rows generate(Module& program, const Rows& prompts, size_t new_tokens) {
  auto [ids, mask] = padded(prompts, kPad, /*left=*/true);
  if (ids.size() > kMaxBatch || ids[0].size() + new_tokens - 1 > kMaxLength) throw std::length_error("past a bound");
  Rows said(ids.size());
  std::vector<bool> done(ids.size(), false);
  // Prefill: the whole prompts, under a mask as long as they are. That is the reset, too.
  // Then each step: one token a row, under a mask that is longer by one.
  for (size_t step = 0; step < new_tokens; ++step) {
    const auto outputs = run(program, "{{ method }}", { {{- inputs -}} });
    const auto next = likeliest(outputs[{{ logits }}]);
    ids.assign(next.size(), {kPad});
    for (size_t row = 0; row < next.size(); ++row) {
      if (!done[row]) said[row].push_back(ids[row][0] = next[row]);
      done[row] = done[row] || next[row] == kEnd;
      mask[row].push_back(1);
    }
    if (std::count(done.begin(), done.end(), false) == 0) break;
  }
  return said;
}

// {{ name }} model.pte 40 "1 57 12" "1 9"
int main(int count, char** arguments) {
  Module program(arguments[1]);
  print(generate(program, texts(count - 1, arguments + 1), std::stoul(arguments[2])));
}
