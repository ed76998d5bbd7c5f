#include "text/chat_template.h"

#include <ctime>

// Takes 15 s to compile: this is the only file that includes it.
#include <minja/minja.hpp>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "text/tokenizer_config.h"

namespace ostro::txt {
namespace {

using nlohmann::ordered_json;

constexpr std::size_t kLargestTemplateBytes = std::size_t{1} << 20;

// Not a std::exception: minja catches those and appends a piece of the template to their text.
struct Raised {
  std::string message;
};

minja::Value raise_exception(const std::shared_ptr<minja::Context>&, minja::ArgumentsValue& args) {
  const minja::Value message = args.args.empty() ? args.get_named("message") : args.args[0];
  throw Raised{message.is_string() ? message.get<std::string>() : message.dump()};
}

minja::Value strftime_now(const std::shared_ptr<minja::Context>&, minja::ArgumentsValue& args) {
  args.expectArgs("strftime_now", {1, 1}, {0, 0});
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  char buffer[256];
  const std::string format = args.args[0].get<std::string>();
  return std::string(buffer, std::strftime(buffer, sizeof buffer, format.c_str(), &local));
}

std::string token_text(const std::optional<std::string>& configured, const Tokenizer& tokenizer,
                       std::optional<std::int32_t> id) {
  if (configured) return *configured;
  return id ? std::string(tokenizer.piece(*id)) : "";
}

// As transformers passes it on: the arguments of calls are objects.
ordered_json message_json(const ChatMessage& message) {
  ordered_json json = {{"role", message.role}, {"content", message.content}};
  for (const ChatToolCall& call : message.tool_calls)
    json["tool_calls"].push_back(
        {{"id", call.id},
         {"type", "function"},
         {"function", {{"name", call.name}, {"arguments", ordered_json::parse(call.arguments)}}}});
  if (!message.tool_call_id.empty()) json["tool_call_id"] = message.tool_call_id;
  if (!message.name.empty()) json["name"] = message.name;
  return json;
}

// With spaces after commas and colons, as Mistral's models have seen JSON.
std::string python_dump(const ordered_json& json) { return minja::Value(json).dump(-1, true); }

std::string mistral_calls(const std::vector<ChatToolCall>& calls) {
  if (calls.empty()) return {};
  auto list = ordered_json::array();
  for (const ChatToolCall& call : calls)
    list.push_back(
        {{"name", call.name}, {"arguments", ordered_json::parse(call.arguments)}, {"id", call.id}});
  return text(kToolCalls, ' ', python_dump(list));
}

// A result that is JSON stands there as such.
std::string mistral_result(const ChatMessage& message) {
  ordered_json content = message.content;
  try {
    parse_json(message.content, "a result", kMostUntrustedKeys);  // limits how deep that is
    content = ordered_json::parse(message.content);
  } catch (const InvalidArgument&) {
  }
  const ordered_json result = {{"content", std::move(content)}, {"call_id", message.tool_call_id}};
  return text("[TOOL_RESULTS] ", python_dump(result), "[/TOOL_RESULTS]");
}

// Who may speak next in Mistral's form.
class MistralTurns {
 public:
  void check(std::size_t i, const ChatMessage& message) {
    const std::string& role = message.role;
    OSTRO_REQUIRE(role == "user" || role == "assistant" || role == "tool", "message ", i,
                  " has the role \"", role,
                  "\"; Mistral's form has user, assistant, tool and, at the beginning, system");
    if (role == "tool") {
      OSTRO_REQUIRE(calls_ > 0, "message ", i,
                    " is the result of a tool, and no call before it waits for one");
      --calls_;
      return;
    }
    check_end();
    OSTRO_REQUIRE((role == "user") == question_next_, "message ", i, " is of the ", role,
                  "; after the system message, user and assistant must alternate, user first");
    calls_ = message.tool_calls.size();
    // After the results the assistant goes on.
    question_next_ = role == "assistant" && calls_ == 0;
  }
  void check_end() const {
    OSTRO_REQUIRE(calls_ == 0, calls_, " tool calls of the assistant have no result");
  }

 private:
  bool question_next_ = true;
  std::size_t calls_ = 0;
};

}  // namespace

struct ChatTemplate::Program {
  std::shared_ptr<minja::TemplateNode> root;
};

ChatTemplate ChatTemplate::from_jinja(const std::string& jinja, Ends ends,
                                      const std::string& name) {
  auto program = std::make_shared<Program>();
  try {
    program->root = minja::Parser::parse(
        jinja, {.trim_blocks = true, .lstrip_blocks = true, .keep_trailing_newline = false});
  } catch (const std::exception& e) {
    OSTRO_THROW(InvalidArgument, name, " is not a chat template: ", e.what());
  }
  return ChatTemplate(name, std::move(ends), std::move(program));
}

ChatTemplate ChatTemplate::mistral(Ends ends) {
  return ChatTemplate("Mistral's form", std::move(ends), nullptr);
}

ChatTemplate ChatTemplate::load(const std::filesystem::path& directory,
                                const Tokenizer& tokenizer) {
  const TokenizerConfig config = read_tokenizer_config(directory);
  Ends ends{.bos = token_text(config.bos_token, tokenizer, tokenizer.bos_id()),
            .eos = token_text(config.eos_token, tokenizer, tokenizer.eos_id())};
  const auto file = directory / "chat_template.jinja";
  if (std::filesystem::exists(file)) {
    return from_jinja(read_file(file, kLargestTemplateBytes), std::move(ends), file.string());
  }
  if (config.chat_templates.empty()) return mistral(std::move(ends));
  const std::string name = (directory / "tokenizer_config.json").string();
  const auto found = config.chat_templates.find("default");
  OSTRO_REQUIRE(found != config.chat_templates.end(), name, " has ", config.chat_templates.size(),
                " chat templates and none is named \"default\"; the first is \"",
                config.chat_templates.begin()->first, '"');
  return from_jinja(found->second, std::move(ends), name);
}

std::string ChatTemplate::render(std::span<const ChatMessage> messages, bool add_generation_prompt,
                                 const std::string& tools) const {
  if (!program_) return render_mistral(messages, tools);
  auto list = ordered_json::array();
  for (const ChatMessage& message : messages) list.push_back(message_json(message));
  try {
    const auto context = minja::Context::make(minja::Value(ordered_json{
        {"messages", std::move(list)},
        {"add_generation_prompt", add_generation_prompt},
        {"bos_token", ends_.bos},
        {"eos_token", ends_.eos},
        {"tools", tools.empty() ? ordered_json(nullptr) : ordered_json::parse(tools)},
        {"documents", nullptr},
    }));
    context->set("raise_exception", minja::Value::callable(raise_exception));
    context->set("strftime_now", minja::Value::callable(strftime_now));
    return program_->root->render(context);
  } catch (const Raised& raised) {
    OSTRO_THROW(InvalidArgument, raised.message);
  } catch (const std::exception& e) {
    OSTRO_THROW(InvalidArgument, name_, " fails on these messages: ", e.what());
  }
}

std::string ChatTemplate::render_mistral(std::span<const ChatMessage> messages,
                                         const std::string& tools) const {
  std::string out = ends_.bos;
  MistralTurns turns;
  std::size_t last_question = messages.size();
  while (last_question > 0 && messages[last_question - 1].role != "user") --last_question;
  std::string before_question;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    if (message.role == "system" && i == 0) {
      before_question = message.content + "\n\n";
      continue;
    }
    turns.check(i, message);
    if (message.role == "user") {
      if (!tools.empty() && i + 1 == last_question)
        out += text("[AVAILABLE_TOOLS] ", python_dump(ordered_json::parse(tools)),
                    "[/AVAILABLE_TOOLS]");
      out += "[INST] " + before_question + message.content + " [/INST]";
      before_question.clear();
    } else if (message.role == "tool") {
      out += mistral_result(message);
    } else {
      if (!message.content.empty() || message.tool_calls.empty()) out += ' ' + message.content;
      out += mistral_calls(message.tool_calls) + ends_.eos;
    }
  }
  OSTRO_REQUIRE(before_question.empty(), "a system message alone is no conversation");
  turns.check_end();
  return out;
}

}  // namespace ostro::txt
