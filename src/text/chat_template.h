// A conversation as the text that a model was trained to continue.
//
//   const auto chat = ChatTemplate::load("models/mixtral", *tokenizer);
//   const auto text = chat.render(messages, /*add_generation_prompt=*/true);
//   tokenizer->encode(text, {.add_special_tokens = false, .parse_special = true});
//
// The rendered text has bos in it already: encode it as above. The template is a checkpoint's own
// Jinja program, run by minja with trim_blocks and lstrip_blocks as transformers does; it sees
// messages, add_generation_prompt, bos_token, eos_token, tools and documents (both none),
// raise_exception and strftime_now. Any number of threads may render.
#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <string>

#include "text/tokenizer.h"

namespace ostro::txt {

struct ChatMessage {
  std::string role;  // "system", "user", "assistant", ...
  std::string content;
};

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
  static ChatTemplate mistral(Ends ends);

  // The directory's chat_template.jinja, else tokenizer_config.json's chat_template (of several,
  // the one named "default"), else Mistral's form.
  static ChatTemplate load(const std::filesystem::path& directory, const Tokenizer& tokenizer);

  // Throws InvalidArgument if the template refuses the messages, with the template's own words.
  std::string render(std::span<const ChatMessage> messages, bool add_generation_prompt) const;

  // Where it comes from, for logs: a file, or "Mistral's form".
  const std::string& name() const { return name_; }
  bool from_checkpoint() const { return program_ != nullptr; }

 private:
  struct Program;
  ChatTemplate(std::string name, Ends ends, std::shared_ptr<const Program> program)
      : name_(std::move(name)), ends_(std::move(ends)), program_(std::move(program)) {}
  std::string render_mistral(std::span<const ChatMessage> messages) const;

  std::string name_;
  Ends ends_;
  std::shared_ptr<const Program> program_;  // null: Mistral's form
};

}  // namespace ostro::txt
