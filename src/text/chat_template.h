// A conversation as the text that a model was trained to continue.
//
//   const auto chat = ChatTemplate::load("models/mixtral", *tokenizer);
//   const auto text = chat.render(messages, /*add_generation_prompt=*/true);
//   tokenizer->encode(text, {.add_special_tokens = false, .parse_special = true});
//
// The rendered text has bos in it already: encode it as above. The template is a checkpoint's own
// Jinja program, run by minja with trim_blocks and lstrip_blocks as transformers does; it sees
// messages, add_generation_prompt, bos_token, eos_token, tools, documents (none), raise_exception
// and strftime_now. A message has role and content, and where they are given tool_calls (OpenAI's,
// with arguments that are an object), tool_call_id and name. Any number of threads may render.
#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace ostro::txt {

// An assistant's call of a function.
struct ChatToolCall {
  std::string id;
  std::string name;
  std::string arguments;  // a JSON object
};

struct ChatMessage {
  std::string role;  // "system", "user", "assistant", "tool", ...
  std::string content;
  std::vector<ChatToolCall> tool_calls = {};  // of an assistant
  std::string tool_call_id = {};              // of a tool: the call that it answers
  std::string name = {};                      // of a tool
};

// With it Mistral's models begin a list of calls: a special token, or plain text where the
// vocabulary has none.
inline constexpr std::string_view kToolCalls = "[TOOL_CALLS]";

class ChatTemplate {
 public:
  struct Ends {
    std::string bos, eos;  // their texts, "<s>" and "</s>"
  };

  // Throws InvalidArgument with the place if `jinja` is not a template.
  static ChatTemplate from_jinja(const std::string& jinja, Ends ends,
                                 const std::string& name = "chat_template");

  // Mistral's form, for a checkpoint that brings no template:
  //   <s>[INST] question [/INST] answer</s>[INST] question [/INST]
  // A system message at the beginning goes before the first question, with an empty line between.
  // Tools, calls and results are as in version 3 of Mistral's tokenizers, each one line here:
  //   [AVAILABLE_TOOLS] tools[/AVAILABLE_TOOLS]   before the last question
  //   [TOOL_CALLS] [{"name": ..., "arguments": {...}, "id": ...}]</s>
  //   [TOOL_RESULTS] {"content": ..., "call_id": ...}[/TOOL_RESULTS]
  static ChatTemplate mistral(Ends ends);

  // The directory's chat_template.jinja, else tokenizer_config.json's chat_template (of several,
  // the one named "default"), else Mistral's form.
  static ChatTemplate load(const std::filesystem::path& directory, const Tokenizer& tokenizer);

  // `tools`: none, or the JSON list of OpenAI's field of that name. Throws InvalidArgument if the
  // template refuses the messages, with the template's own words.
  std::string render(std::span<const ChatMessage> messages, bool add_generation_prompt,
                     const std::string& tools = {}) const;

  // Where it comes from, for logs: a file, or "Mistral's form".
  const std::string& name() const { return name_; }
  bool from_checkpoint() const { return program_ != nullptr; }

 private:
  struct Program;
  ChatTemplate(std::string name, Ends ends, std::shared_ptr<const Program> program)
      : name_(std::move(name)), ends_(std::move(ends)), program_(std::move(program)) {}
  std::string render_mistral(std::span<const ChatMessage> messages, const std::string& tools) const;

  std::string name_;
  Ends ends_;
  std::shared_ptr<const Program> program_;  // null: Mistral's form
};

}  // namespace ostro::txt
