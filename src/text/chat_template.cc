#include "text/chat_template.h"

#include <ctime>

// Takes 15 s to compile: this is the only file that includes it.
#include <minja/minja.hpp>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "text/tokenizer_config.h"

namespace ostro::txt {
namespace {

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

std::string ChatTemplate::render(std::span<const ChatMessage> messages,
                                 bool add_generation_prompt) const {
  if (!program_) return render_mistral(messages);
  auto list = nlohmann::ordered_json::array();
  for (const ChatMessage& message : messages) {
    list.push_back({{"role", message.role}, {"content", message.content}});
  }
  try {
    const auto context = minja::Context::make(minja::Value(nlohmann::ordered_json{
        {"messages", std::move(list)},
        {"add_generation_prompt", add_generation_prompt},
        {"bos_token", ends_.bos},
        {"eos_token", ends_.eos},
        {"tools", nullptr},
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

std::string ChatTemplate::render_mistral(std::span<const ChatMessage> messages) const {
  std::string out = ends_.bos;
  std::string before_question;
  bool question_next = true;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const auto& [role, content] = messages[i];
    if (role == "system" && i == 0) {
      before_question = content + "\n\n";
      continue;
    }
    OSTRO_REQUIRE(role == "user" || role == "assistant", "message ", i, " has the role \"", role,
                  "\"; Mistral's form has user, assistant and, at the beginning, system");
    OSTRO_REQUIRE((role == "user") == question_next, "message ", i, " is of the ", role,
                  "; after the system message, user and assistant must alternate, user first");
    if (question_next) {
      out += "[INST] " + before_question + content + " [/INST]";
      before_question.clear();
    } else {
      out += ' ' + content + ends_.eos;
    }
    question_next = !question_next;
  }
  OSTRO_REQUIRE(before_question.empty(), "a system message alone is no conversation");
  return out;
}

}  // namespace ostro::txt
