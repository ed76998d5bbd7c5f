#include "text/bpe_json_file.h"

#include <nlohmann/json.hpp>

#include "base/error.h"

namespace ostro::txt {
namespace {

using nlohmann::json;

// nlohmann's events. `open_` is the way to the value that comes next: null where the containers of
// the vocabulary or the merges, which are not in the document, are open.
class Reader {
 public:
  Reader(std::string_view name, BpeJsonFile& file) : name_(name), file_(file) {}
  json take() { return std::move(root_); }

  bool null() { return value(nullptr); }
  bool boolean(bool v) { return value(v); }
  bool number_integer(json::number_integer_t v) { return value(v); }
  bool number_float(json::number_float_t v, const std::string&) { return value(v); }
  bool binary(json::binary_t&) { return true; }
  bool number_unsigned(json::number_unsigned_t v) {
    return place_ == Place::vocab ? token(static_cast<std::int64_t>(v)) : value(v);
  }

  bool string(std::string& v) {
    if (place_ == Place::merges) return merge(v);
    if (place_ == Place::merge_pair) return merge_part(v);
    return value(std::move(v));
  }

  bool key(std::string& v) {
    key_ = std::move(v);
    return true;
  }

  bool start_object(std::size_t) {
    if (place_ == Place::elsewhere && at_model_key("vocab")) {
      enter(Place::vocab);
      return true;
    }
    open(json::object());
    return true;
  }
  bool start_array(std::size_t) {
    if (place_ == Place::elsewhere && at_model_key("merges")) {
      enter(Place::merges);
      return true;
    }
    if (place_ == Place::merges) {
      place_ = Place::merge_pair;
      return true;
    }
    open(json::array());
    return true;
  }
  bool end_object() { return close(); }
  bool end_array() {
    if (place_ == Place::merge_pair) {
      OSTRO_REQUIRE(pair_parts_ == 2, name_, ": merge ", merge_count(), " has ", pair_parts_,
                    " parts; it must have 2");
      pair_parts_ = 0;
      place_ = Place::merges;
      return true;
    }
    return close();
  }

  bool parse_error(std::size_t position, const std::string&, const json::exception&) {
    OSTRO_THROW(InvalidArgument, name_, " is not JSON: it goes wrong at byte ", position);
  }

 private:
  enum class Place { elsewhere, vocab, merges, merge_pair };
  static constexpr std::size_t kDeepest = 64;

  bool at_model_key(std::string_view key) const {
    return open_.size() == 2 && path_[1] == "model" && open_[1]->is_object() && key_ == key;
  }
  std::size_t merge_count() const { return file_.merge_ends.size() / 2; }

  void enter(Place place) {
    bool& seen = place == Place::vocab ? vocab_seen_ : merges_seen_;
    OSTRO_REQUIRE(!seen, name_, " has \"", key_, "\" twice");
    seen = true;
    place_ = place;
  }

  bool close() {
    if (place_ != Place::elsewhere) {
      place_ = Place::elsewhere;
    } else {
      open_.pop_back();
      path_.pop_back();
    }
    return true;
  }

  void open(json container) {
    OSTRO_REQUIRE(open_.size() < kDeepest, name_, " nests JSON deeper than ", kDeepest);
    std::string key = key_;
    open_.push_back(put(std::move(container)));
    path_.push_back(std::move(key));
  }

  bool value(json v) {
    put(std::move(v));
    return true;
  }

  json* put(json v) {
    OSTRO_REQUIRE(place_ != Place::vocab, name_, ": the id of token \"", key_, "\" is ", v.dump(),
                  "; it must be an integer of at least 0");
    OSTRO_REQUIRE(place_ == Place::elsewhere, name_, ": merge ", merge_count(), " is ", v.dump(),
                  "; it must be two tokens");
    if (open_.empty()) {
      root_ = std::move(v);
      return &root_;
    }
    json& parent = *open_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(v));
      return &parent.back();
    }
    return &(parent[key_] = std::move(v));
  }

  bool token(std::int64_t id) {
    OSTRO_REQUIRE(0 <= id && id < kMostIds, name_, ": the id of token \"", key_, "\" is ",
                  static_cast<std::uint64_t>(id), "; it must be below ", kMostIds);
    const auto [number, is_new] = file_.tokens.insert(key_);
    OSTRO_REQUIRE(is_new, name_, ": token \"", key_, "\" occurs twice in the vocabulary");
    file_.ids.push_back(static_cast<std::int32_t>(id));
    if (used_.size() <= static_cast<std::size_t>(id)) used_.resize(id + 1);
    OSTRO_REQUIRE(!used_[id], name_, ": id ", id, " of token \"", key_,
                  "\" belongs to another token too");
    used_[id] = true;
    return true;
  }

  // "left right": the only space, because no part has one in it.
  bool merge(std::string_view both) {
    const std::size_t space = both.find(' ');
    OSTRO_REQUIRE(space != std::string_view::npos && both.find(' ', space + 1) == both.npos, name_,
                  ": merge ", merge_count(), " is \"", both,
                  "\"; it must be two tokens with a space between them");
    merge_end(both.substr(0, space));
    merge_end(both.substr(space + 1));
    return true;
  }
  bool merge_part(std::string_view part) {
    ++pair_parts_;
    OSTRO_REQUIRE(pair_parts_ <= 2, name_, ": merge ", merge_count() - 1, " has more than 2 parts");
    merge_end(part);
    return true;
  }
  void merge_end(std::string_view part) {
    file_.merge_text += part;
    file_.merge_ends.push_back(static_cast<std::uint32_t>(file_.merge_text.size()));
  }

  std::string_view name_;
  BpeJsonFile& file_;
  json root_;
  std::vector<json*> open_;
  std::vector<std::string> path_;  // the key under which each of open_ stands
  std::string key_;
  Place place_ = Place::elsewhere;
  int pair_parts_ = 0;
  bool vocab_seen_ = false, merges_seen_ = false;
  std::vector<bool> used_;  // ids
};

}  // namespace

std::vector<BpeMerge> BpeJsonFile::merges() const {
  std::vector<BpeMerge> all(merge_ends.size() / 2);
  std::size_t begin = 0;
  const auto part = [&](std::size_t i) {
    const auto view = std::string_view(merge_text).substr(begin, merge_ends[i] - begin);
    begin = merge_ends[i];
    return view;
  };
  for (std::size_t i = 0; i < all.size(); ++i) {
    all[i].left = part(2 * i);
    all[i].right = part(2 * i + 1);
  }
  return all;
}

json read_bpe_json(std::string_view text, std::string_view name, BpeJsonFile& file) {
  // A vocabulary entry takes about 20 bytes of the file and a merge about 15.
  file.tokens.reserve(text.size() / 64, text.size() / 8);
  file.merge_text.reserve(text.size() / 4);
  Reader reader(name, file);
  json::sax_parse(text, &reader);
  return reader.take();
}

}  // namespace ostro::txt
