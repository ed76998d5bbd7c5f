#include <cstring>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "base/error.h"
#include "checkpoint/torch_file.h"

namespace ostro::checkpoint {
namespace {

// Indices into the unpickler's values.
using Ref = std::uint32_t;

struct Value {
  enum class Kind {
    none,
    boolean,
    integer,
    real,
    string,
    tuple,
    list,
    dict,
    global,
    storage,
    tensor
  };
  Kind kind = Kind::none;
  std::int64_t integer = 0;           // boolean, integer; tensor: the first element in its storage
  std::string_view text{};            // string; storage: its key. In the pickle's bytes
  std::string global{};               // "module.name"
  std::vector<Ref> items{};           // tuple, list; dict: key, value, key, value ...
  StoredType type{};                  // storage, tensor
  std::vector<std::int64_t> shape{};  // tensor
};

std::string_view name(Value::Kind kind) {
  constexpr std::string_view kNames[] = {"None",     "a boolean", "an integer", "a float",
                                         "a string", "a tuple",   "a list",     "a dictionary",
                                         "a global", "a storage", "a tensor"};
  return kNames[int(kind)];
}

std::optional<StoredType> storage_type(std::string_view global) {
  constexpr std::pair<std::string_view, StoredType> kStorages[] = {
      {"torch.DoubleStorage", StoredType::f64}, {"torch.FloatStorage", StoredType::f32},
      {"torch.HalfStorage", StoredType::f16},   {"torch.BFloat16Storage", StoredType::bf16},
      {"torch.LongStorage", StoredType::i64},   {"torch.IntStorage", StoredType::i32},
      {"torch.ShortStorage", StoredType::i16},  {"torch.CharStorage", StoredType::i8},
      {"torch.ByteStorage", StoredType::u8},    {"torch.BoolStorage", StoredType::boolean}};
  for (const auto& [known, type] : kStorages)
    if (known == global) return type;
  return {};
}

// The stack machine of Python's pickle protocols 2 to 5, cut down to what builds dictionaries of
// tensors. Opcodes: https://docs.python.org/3/library/pickletools.html
class Unpickler {
 public:
  Unpickler(std::span<const std::byte> program, const std::string& path)
      : program_(reinterpret_cast<const char*>(program.data()), program.size()), path_(path) {}

  // Runs to STOP; the result is a dictionary.
  std::vector<PickledTensor> state_dict() {
    while (step()) {
    }
    const Value& dict = value(pop());
    OSTRO_SUPPORTED(dict.kind == Value::Kind::dict, path_, " holds ", name(dict.kind),
                    "; it must hold a dictionary of tensors (torch.save(model.state_dict(), ...))");
    std::vector<PickledTensor> tensors;
    std::unordered_set<std::string_view> names;
    for (std::size_t i = 0; i < dict.items.size(); i += 2) {
      const Value& key = value(dict.items[i]);
      const Value& item = value(dict.items[i + 1]);
      OSTRO_SUPPORTED(key.kind == Value::Kind::string, path_, " holds a dictionary with ",
                      name(key.kind), " for a key; it must hold tensors by name");
      OSTRO_SUPPORTED(item.kind == Value::Kind::tensor, path_, " holds ", name(item.kind), " as \"",
                      key.text, "\"; it must hold tensors by name and nothing else");
      OSTRO_REQUIRE(names.insert(key.text).second, path_, " holds tensor \"", key.text, "\" twice");
      tensors.push_back({.name = std::string(key.text),
                         .storage = std::string(item.text),
                         .type = item.type,
                         .offset = item.integer,
                         .shape = item.shape});
    }
    return tensors;
  }

 private:
  using Kind = Value::Kind;

  bool step() {
    const std::size_t start = at_;
    const auto opcode = static_cast<unsigned char>(take(1)[0]);
    switch (opcode) {
      case 0x80: {  // PROTO
        const int protocol = static_cast<unsigned char>(take(1)[0]);
        OSTRO_SUPPORTED(2 <= protocol && protocol <= 5, path_, " is in pickle protocol ", protocol,
                        "; Ostro reads 2 to 5");
        break;
      }
      case 0x95:
        take(8);
        break;  // FRAME
      case '.':
        return false;  // STOP
      case '(':
        marks_.push_back(stack_.size());
        break;  // MARK
      case 'N':
        push({});
        break;  // NONE
      case 0x88:
        push_integer(1, Kind::boolean);
        break;  // NEWTRUE
      case 0x89:
        push_integer(0, Kind::boolean);
        break;  // NEWFALSE
      case 'J':
        push_integer(number<std::int32_t>());
        break;  // BININT
      case 'K':
        push_integer(number<std::uint8_t>());
        break;  // BININT1
      case 'M':
        push_integer(number<std::uint16_t>());
        break;  // BININT2
      case 0x8a:
        push_long();
        break;  // LONG1
      case 'G':
        take(8);
        push({.kind = Kind::real});
        break;  // BINFLOAT
      case 'X':
        push_string(take(number<std::uint32_t>()));
        break;  // BINUNICODE
      case 0x8c:
        push_string(take(number<std::uint8_t>()));
        break;  // SHORT_BINUNICODE
      case 0x8d:
        push_string(take(number<std::uint64_t>()));
        break;  // BINUNICODE8
      case '}':
        push({.kind = Kind::dict});
        break;  // EMPTY_DICT
      case ']':
        push({.kind = Kind::list});
        break;  // EMPTY_LIST
      case ')':
        push({.kind = Kind::tuple});
        break;  // EMPTY_TUPLE
      case 't':
        push({.kind = Kind::tuple, .items = pop_to_mark()});
        break;  // TUPLE
      case 0x85:
        push({.kind = Kind::tuple, .items = pop_last(1)});
        break;  // TUPLE1
      case 0x86:
        push({.kind = Kind::tuple, .items = pop_last(2)});
        break;  // TUPLE2
      case 0x87:
        push({.kind = Kind::tuple, .items = pop_last(3)});
        break;  // TUPLE3
      case 'a':
        extend(Kind::list, pop_last(1));
        break;  // APPEND
      case 'e':
        extend(Kind::list, pop_to_mark());
        break;  // APPENDS
      case 's':
        extend(Kind::dict, pop_last(2));
        break;  // SETITEM
      case 'u':
        extend(Kind::dict, pop_to_mark());
        break;  // SETITEMS
      case 'q':
        memo_[number<std::uint8_t>()] = top();
        break;  // BINPUT
      case 'r':
        memo_[number<std::uint32_t>()] = top();
        break;      // LONG_BINPUT
      case 0x94: {  // MEMOIZE
        const auto index = std::uint32_t(memo_.size());
        memo_[index] = top();
        break;
      }
      case 'h':
        recall(number<std::uint8_t>());
        break;  // BINGET
      case 'j':
        recall(number<std::uint32_t>());
        break;     // LONG_BINGET
      case 'c': {  // GLOBAL
        const std::string_view module = line();
        push_global(module, line());
        break;
      }
      case 0x93: {  // STACK_GLOBAL
        const auto names = pop_last(2);
        push_global(string_of(names[0]), string_of(names[1]));
        break;
      }
      case 'Q':
        push_storage(pop());
        break;     // BINPERSID
      case 'R': {  // REDUCE
        const Ref arguments = pop();
        call(pop(), arguments);
        break;
      }
      case 'b': {  // BUILD: attributes of an OrderedDict (_metadata), which say nothing of tensors
        const Ref state = pop();
        OSTRO_SUPPORTED(value(state).kind == Kind::dict && value(top()).kind == Kind::dict, path_,
                        ": the pickle sets attributes of ", name(value(top()).kind),
                        "; Ostro refuses to run that");
        break;
      }
      default:
        OSTRO_THROW(Unsupported, path_, ": the pickle has opcode ", int(opcode), " at byte ", start,
                    ", which torch.save does not need for tensors; Ostro refuses to run it");
    }
    return true;
  }

  std::string_view take(std::uint64_t bytes) {
    OSTRO_REQUIRE(bytes <= program_.size() - at_, path_, ": the pickle ends at byte ",
                  program_.size(), " in the middle of an instruction");
    const std::string_view taken = program_.substr(at_, bytes);
    at_ += bytes;
    return taken;
  }
  std::string_view line() {
    const std::size_t end = program_.find('\n', at_);
    OSTRO_REQUIRE(end != std::string_view::npos, path_, ": the pickle ends at byte ",
                  program_.size(), " in the middle of a name");
    const std::string_view taken = program_.substr(at_, end - at_);
    at_ = end + 1;
    return taken;
  }
  template <class T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
    return value;
  }

  const Value& value(Ref ref) const { return values_[ref]; }
  void push(Value v) {
    stack_.push_back(Ref(values_.size()));
    values_.push_back(std::move(v));
  }
  void push_integer(std::int64_t n, Kind kind = Kind::integer) {
    push({.kind = kind, .integer = n});
  }
  void push_string(std::string_view s) { push({.kind = Kind::string, .text = s}); }
  // Two's complement of any length; a size has at most 8 bytes.
  void push_long() {
    const std::string_view digits = take(number<std::uint8_t>());
    OSTRO_REQUIRE(digits.size() <= 8, path_, ": the pickle has an integer of ", digits.size(),
                  " bytes; at most 8 are read");
    std::int64_t n = 0;
    std::memcpy(&n, digits.data(), digits.size());
    if (const int unused = int(64 - 8 * digits.size()); unused > 0 && unused < 64)
      n = std::int64_t(std::uint64_t(n) << unused) >> unused;
    push_integer(n);
  }

  // Marks bound what instructions may take, as in Python.
  std::size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }
  Ref top() const {
    OSTRO_REQUIRE(stack_.size() > floor(), path_, ": the pickle takes from an empty stack at byte ",
                  at_);
    return stack_.back();
  }
  Ref pop() {
    const Ref ref = top();
    stack_.pop_back();
    return ref;
  }
  std::vector<Ref> pop_last(std::size_t n) {
    OSTRO_REQUIRE(stack_.size() - floor() >= n, path_,
                  ": the pickle takes from an empty stack at byte ", at_);
    std::vector<Ref> items(stack_.end() - std::ptrdiff_t(n), stack_.end());
    stack_.resize(stack_.size() - n);
    return items;
  }
  std::vector<Ref> pop_to_mark() {
    OSTRO_REQUIRE(!marks_.empty(), path_, ": the pickle looks for a mark at byte ", at_,
                  " and there is none");
    auto items = pop_last(stack_.size() - floor());
    marks_.pop_back();
    return items;
  }

  void extend(Kind kind, std::vector<Ref> items) {
    Value& container = values_[top()];
    OSTRO_REQUIRE(container.kind == kind && (kind != Kind::dict || items.size() % 2 == 0), path_,
                  ": the pickle adds ", items.size(), " items to ", name(container.kind),
                  " at byte ", at_);
    container.items.insert(container.items.end(), items.begin(), items.end());
  }
  void recall(std::uint32_t index) {
    const auto it = memo_.find(index);
    OSTRO_REQUIRE(it != memo_.end(), path_, ": the pickle recalls ", index,
                  ", which it never stored");
    stack_.push_back(it->second);
  }

  std::string_view string_of(Ref ref) const {
    OSTRO_REQUIRE(value(ref).kind == Kind::string, path_, ": the pickle has ",
                  name(value(ref).kind), " at byte ", at_, ", where it must have a string");
    return value(ref).text;
  }
  std::int64_t integer_of(Ref ref) const {
    OSTRO_REQUIRE(value(ref).kind == Kind::integer, path_, ": the pickle has ",
                  name(value(ref).kind), " at byte ", at_, ", where it must have an integer");
    return value(ref).integer;
  }
  const std::vector<Ref>& tuple_of(Ref ref, std::size_t least) const {
    const Value& v = value(ref);
    OSTRO_REQUIRE(v.kind == Kind::tuple && v.items.size() >= least, path_, ": the pickle has ",
                  name(v.kind), " at byte ", at_, ", where it must have a tuple of ", least);
    return v.items;
  }
  std::vector<std::int64_t> integers_of(Ref ref) const {
    const auto& items = tuple_of(ref, 0);
    OSTRO_REQUIRE(items.size() <= kMostDimensions, path_, ": the pickle has a tensor of ",
                  items.size(), " dimensions; at most ", kMostDimensions, " are read");
    std::vector<std::int64_t> numbers;
    for (const Ref item : items) numbers.push_back(integer_of(item));
    return numbers;
  }

  void push_global(std::string_view module, std::string_view function) {
    std::string global = text(module, '.', function);
    const bool known =
        global == kTensor || global == kParameter || global == kOrderedDict || storage_type(global);
    OSTRO_SUPPORTED(known, path_, ": the pickle asks for ", global.substr(0, 200),
                    "; Ostro refuses to run anything but the constructors of plain tensors: "
                    "convert the checkpoint to safetensors");
    push({.kind = Kind::global, .global = std::move(global)});
  }

  // ("storage", torch.FloatStorage, key, device, elements)
  void push_storage(Ref id) {
    const auto& fields = tuple_of(id, 5);
    const auto type = storage_type(value(fields[1]).global);
    OSTRO_SUPPORTED(string_of(fields[0]) == "storage" && type, path_,
                    ": the pickle refers to something that is not the storage of a tensor");
    OSTRO_REQUIRE(string_of(fields[2]).size() <= kLongestKey, path_,
                  ": the pickle names a storage with ", string_of(fields[2]).size(),
                  " characters; at most ", kLongestKey, " are read");
    push({.kind = Kind::storage, .text = string_of(fields[2]), .type = *type});
  }

  void call(Ref function, Ref arguments) {
    const std::string& global = value(function).global;
    if (global == kOrderedDict) {
      OSTRO_SUPPORTED(
          tuple_of(arguments, 0).empty(), path_,
          ": the pickle makes an OrderedDict from something; Ostro refuses to run that");
      push({.kind = Kind::dict});
    } else if (global == kTensor) {
      push(tensor(tuple_of(arguments, 4)));
    } else if (global == kParameter) {  // (tensor, requires_grad, hooks)
      const Ref data = tuple_of(arguments, 1)[0];
      OSTRO_REQUIRE(value(data).kind == Kind::tensor, path_, ": the pickle makes a parameter of ",
                    name(value(data).kind));
      stack_.push_back(data);
    } else {
      OSTRO_THROW(Unsupported, path_, ": the pickle calls ",
                  global.empty() ? name(value(function).kind) : global,
                  "; Ostro refuses to run that");
    }
  }

  // (storage, offset, shape, stride, ...)
  Value tensor(const std::vector<Ref>& arguments) const {
    const Value& storage = value(arguments[0]);
    OSTRO_REQUIRE(storage.kind == Kind::storage, path_, ": the pickle makes a tensor of ",
                  name(storage.kind));
    const auto shape = integers_of(arguments[2]);
    const auto stride = integers_of(arguments[3]);
    OSTRO_REQUIRE(shape.size() == stride.size(), path_, ": the pickle has a tensor of shape ",
                  shape_text(shape), " with strides ", shape_text(stride));
    const auto elements = element_count(shape);
    OSTRO_REQUIRE(elements, path_, ": the pickle has a tensor of shape ", shape_text(shape));
    std::int64_t expected = 1;
    for (std::size_t i = shape.size(); i-- > 0 && *elements > 0;) {
      OSTRO_SUPPORTED(shape[i] == 1 || stride[i] == expected, path_,
                      ": the pickle has a tensor of shape ", shape_text(shape), " with strides ",
                      shape_text(stride),
                      "; Ostro reads contiguous tensors: save it again after "
                      ".contiguous()");
      expected *= shape[i];
    }
    return {.kind = Kind::tensor,
            .integer = integer_of(arguments[1]),
            .text = storage.text,
            .type = storage.type,
            .shape = shape};
  }

  static constexpr std::string_view kTensor = "torch._utils._rebuild_tensor_v2";
  static constexpr std::string_view kParameter = "torch._utils._rebuild_parameter";
  static constexpr std::string_view kOrderedDict = "collections.OrderedDict";

  static constexpr std::size_t kMostDimensions = 16;
  static constexpr std::size_t kLongestKey = 255;

  std::string_view program_;
  const std::string& path_;
  std::size_t at_ = 0;
  std::vector<Value> values_;
  std::vector<Ref> stack_;
  std::vector<std::size_t> marks_;
  std::unordered_map<std::uint32_t, Ref> memo_;
};

}  // namespace

std::vector<PickledTensor> read_state_dict(std::span<const std::byte> pickle,
                                           const std::string& path) {
  return Unpickler(pickle, path).state_dict();
}

}  // namespace ostro::checkpoint
