#include "loadgen/stream_events.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace ostro::loadgen {
namespace {

std::vector<std::string> read_all(std::string_view stream, std::size_t piece) {
  EventReader reader;
  std::vector<std::string> events;
  for (std::size_t at = 0; at < stream.size(); at += piece) {
    reader.add(stream.substr(at, piece));
    while (const auto data = reader.next()) events.emplace_back(*data);
  }
  return events;
}

TEST(EventReader, GivesTheSameEventsHoweverTheBytesCome) {
  const std::string stream =
      ": hello\n\ndata: {\"a\":1}\n\nevent: x\r\ndata:two\r\ndata:  lines\r\n\r\ndatax: no\ndata\n"
      "\nid: 7\n\ndata: [DONE]\n\ndata: incomplete\n";
  const std::vector<std::string> wanted = {"{\"a\":1}", "two\n lines", "", "[DONE]"};
  for (std::size_t piece = 1; piece <= stream.size(); ++piece)
    EXPECT_EQ(read_all(stream, piece), wanted) << piece;
}

TEST(ParseEvent, SeesTextOfCompletionsAndChats) {
  EXPECT_TRUE(parse_event(R"({"choices":[{"index":0,"text":"a"}]})").has_text);
  EXPECT_FALSE(
      parse_event(R"({"choices":[{"index":0,"text":"","finish_reason":"stop"}]})").has_text);
  EXPECT_TRUE(parse_event(R"({"choices":[{"delta":{"content":"a"}}]})").has_text);
  EXPECT_TRUE(parse_event(R"({"choices":[{"delta":{"reasoning_content":"a"}}]})").has_text);
  EXPECT_TRUE(parse_event(R"({"choices":[{"delta":{"tool_calls":[{"index":0}]}}]})").has_text);
  // A chat's first event names the role alone: it is no token.
  EXPECT_FALSE(
      parse_event(R"({"choices":[{"delta":{"role":"assistant","content":""}}]})").has_text);
  EXPECT_FALSE(parse_event(R"({"choices":[{"delta":{"content":null}}],"usage":null})").has_text);
}

TEST(ParseEvent, ReadsUsageErrorsAndTheEnd) {
  const StreamEvent usage =
      parse_event(R"({"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7}})");
  EXPECT_EQ(usage.prompt_tokens, 5);
  EXPECT_EQ(usage.completion_tokens, 7);
  EXPECT_FALSE(usage.has_text);
  EXPECT_EQ(parse_event(R"({"error":{"message":"full","code":429}})").error, "full");
  EXPECT_EQ(parse_event(R"({"error":"broken"})").error, "\"broken\"");
  EXPECT_TRUE(parse_event("[DONE]").is_done);
  EXPECT_THROW(parse_event("<html>"), InvalidArgument);
  EXPECT_THROW(parse_event("[1]"), InvalidArgument);
}

}  // namespace
}  // namespace ostro::loadgen
