#include "engine/tokenizer_check.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/utf8.h"

namespace binarymos {
namespace {

constexpr size_t kMaxPieces = 1'000'000;
constexpr size_t kMaxPieceBytes = 1024;  // sentencepiece recurses over them
constexpr size_t kMaxSpecBytes = 16 << 20;
constexpr size_t kMaxReplacementBytes = 1024;
constexpr int kMaxRuleBytes = 256;  // the check recurses over them
// Sizes of arrays on sentencepiece's stack that it reads to the end of the
// matches, not of the array.
constexpr int kMaxNestedRules = 32;
constexpr int kMaxNestedSymbols = 64;

template <typename... Parts>
absl::Status Invalid(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

// One field of a protobuf message in wire format.
struct Field {
  enum class Wire : uint8_t { kVarint = 0, k64 = 1, kBytes = 2, k32 = 5 };
  uint32_t number = 0;
  Wire wire = Wire::kVarint;
  uint64_t value = 0;      // kVarint, k64, k32
  std::string_view bytes;  // kBytes
};

// Reads the fields of a message one after the other.
class FieldReader {
 public:
  explicit FieldReader(std::string_view message) : rest_(message) {}

  bool done() const { return rest_.empty(); }

  // INVALID_ARGUMENT if what follows is not a field. REQUIRES: !done().
  absl::Status Next(Field* field) {
    uint64_t tag = 0;
    if (!Varint(&tag) || tag > UINT32_MAX || tag >> 3 == 0) {
      return Invalid("a field has no valid tag");
    }
    field->number = static_cast<uint32_t>(tag >> 3);
    field->wire = static_cast<Field::Wire>(tag & 7);
    field->value = 0;
    field->bytes = {};
    switch (field->wire) {
      case Field::Wire::kVarint:
        if (Varint(&field->value)) return absl::OkStatus();
        break;
      case Field::Wire::k64:
        if (Fixed(8, &field->value)) return absl::OkStatus();
        break;
      case Field::Wire::k32:
        if (Fixed(4, &field->value)) return absl::OkStatus();
        break;
      case Field::Wire::kBytes:
        if (Bytes(&field->bytes)) return absl::OkStatus();
        break;
      default:
        return Invalid("field ", field->number, " has wire type ", tag & 7,
                       ", expected 0, 1, 2 or 5");
    }
    return Invalid("field ", field->number, " is truncated");
  }

 private:
  bool Varint(uint64_t* value) {
    *value = 0;
    for (size_t i = 0; i < rest_.size() && i < 10; ++i) {
      const auto byte = static_cast<uint8_t>(rest_[i]);
      if (i == 9 && byte > 1) return false;
      *value |= static_cast<uint64_t>(byte & 0x7f) << (7 * i);
      if (byte < 0x80) {
        rest_.remove_prefix(i + 1);
        return true;
      }
    }
    return false;
  }

  bool Fixed(size_t size, uint64_t* value) {
    if (rest_.size() < size) return false;
    std::memcpy(value, rest_.data(), size);
    rest_.remove_prefix(size);
    return true;
  }

  bool Bytes(std::string_view* bytes) {
    uint64_t length = 0;
    if (!Varint(&length) || length > rest_.size()) return false;
    *bytes = rest_.substr(0, length);
    rest_.remove_prefix(length);
    return true;
  }

  std::string_view rest_;
};

// --- Character maps ---

// A unit of a Darts-clone double array.
class TrieUnit {
 public:
  explicit TrieUnit(uint32_t bits) : bits_(bits) {}
  bool has_leaf() const { return (bits_ >> 8 & 1) != 0; }
  uint32_t value() const { return bits_ & 0x7fffffffu; }
  uint32_t label() const { return bits_ & 0x800000ffu; }
  uint32_t offset() const { return bits_ >> 10 << ((bits_ & 0x200u) >> 6); }

 private:
  uint32_t bits_;
};

// Follows every path that some input could make sentencepiece follow. Sound
// maps share the ends of their rules, so the paths form a graph without cycles.
class CharsMapChecker {
 public:
  CharsMapChecker(std::string_view trie, std::string_view replacements)
      : trie_(trie),
        num_units_(trie.size() / sizeof(uint32_t)),
        replacements_(replacements),
        nested_rules_(num_units_, kNotVisited) {}

  absl::Status Check() {
    const TrieUnit root = Unit(0);
    if (root.label() != 0 || root.has_leaf()) {
      return Invalid("the root of its trie is not a root");
    }
    return Visit(root.offset(), 0);
  }

 private:
  static constexpr int8_t kNotVisited = -1;
  static constexpr int8_t kInProgress = -2;

  TrieUnit Unit(uint32_t index) const {
    uint32_t bits = 0;
    std::memcpy(&bits, trie_.data() + size_t{index} * sizeof(bits),
                sizeof(bits));
    return TrieUnit(bits);
  }

  // Checks the node whose children are at base ^ label, and what follows it,
  // and fills in its nested_rules_.
  absl::Status Visit(uint32_t base, int depth) {
    // The input chooses any of 256 labels: all of them must be inside.
    if ((base | 0xffu) >= num_units_) {
      return Invalid("its trie has ", num_units_, " units and refers to unit ",
                     base | 0xffu);
    }
    if (nested_rules_[base] == kInProgress) {
      return Invalid("its trie has a cycle");
    }
    if (nested_rules_[base] != kNotVisited) return absl::OkStatus();
    if (depth > kMaxRuleBytes) {
      return Invalid("a rule is longer than ", kMaxRuleBytes, " bytes");
    }
    nested_rules_[base] = kInProgress;
    int most = 0;
    for (uint32_t label = 0; label < 256; ++label) {
      const TrieUnit unit = Unit(base ^ label);
      if (unit.label() != label) continue;
      const uint32_t child = base ^ label ^ unit.offset();
      absl::Status status = Visit(child, depth + 1);
      if (status.ok() && unit.has_leaf()) {
        status = CheckReplacement(Unit(child).value());
      }
      if (!status.ok()) return status;
      most = std::max(most, nested_rules_[child] + (unit.has_leaf() ? 1 : 0));
    }
    if (most > kMaxNestedRules) {
      return Invalid("more than ", kMaxNestedRules,
                     " of its rules begin with one another");
    }
    nested_rules_[base] = static_cast<int8_t>(most);
    return absl::OkStatus();
  }

  absl::Status CheckReplacement(uint32_t offset) const {
    if (offset >= replacements_.size()) {
      return Invalid("a rule refers to byte ", offset, " of ",
                     replacements_.size(), " bytes of replacements");
    }
    const std::string_view rest =
        replacements_.substr(offset, kMaxReplacementBytes + 1);
    const size_t end = rest.find('\0');
    if (end == rest.npos) {
      return Invalid("the replacement at byte ", offset,
                     " does not end within ", kMaxReplacementBytes, " bytes");
    }
    if (!IsUtf8(rest.substr(0, end))) {
      return Invalid("the replacement at byte ", offset, " is not UTF-8");
    }
    return absl::OkStatus();
  }

  const std::string_view trie_;
  const size_t num_units_;
  const std::string_view replacements_;
  // By base: the most rules that end on one path from there.
  std::vector<int8_t> nested_rules_;
};

// map: size of the trie (u32), trie (u32 units), replacements that end with 0.
absl::Status CheckCharsMap(std::string_view map) {
  if (map.empty()) return absl::OkStatus();
  uint32_t trie_bytes = 0;
  if (map.size() <= sizeof(trie_bytes)) {
    return Invalid("it has ", map.size(), " bytes, expected more than 4");
  }
  std::memcpy(&trie_bytes, map.data(), sizeof(trie_bytes));
  map.remove_prefix(sizeof(trie_bytes));
  if (trie_bytes >= map.size()) {
    return Invalid("its trie has ", trie_bytes, " bytes, expected fewer than ",
                   map.size());
  }
  if (trie_bytes == 0 || trie_bytes % sizeof(uint32_t) != 0) {
    return Invalid("its trie has ", trie_bytes,
                   " bytes, expected a multiple of 4 above 0");
  }
  return CharsMapChecker(map.substr(0, trie_bytes), map.substr(trie_bytes))
      .Check();
}

// --- The model ---

enum PieceType : uint64_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

struct Piece {
  std::string_view text;
  uint64_t type = kNormal;
};

// Value of "<0xAB>", or -1 for any other text.
int ByteOf(std::string_view text) {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  if (text.size() != 6 || text.substr(0, 3) != "<0x" || text[5] != '>') {
    return -1;
  }
  const size_t high = kDigits.find(text[3]);
  const size_t low = kDigits.find(text[4]);
  if (high == kDigits.npos || low == kDigits.npos) return -1;
  return static_cast<int>(high * 16 + low);
}

// Refuses a second occurrence of a field that may stand once: protobuf would
// merge the two, and what was checked would not be what is used.
class OnceOnly {
 public:
  absl::Status See(const Field& field, Field::Wire wire) {
    if (field.wire != wire) {
      return Invalid("field ", field.number, " has wire type ",
                     static_cast<int>(field.wire), ", expected ",
                     static_cast<int>(wire));
    }
    const uint64_t bit = uint64_t{1} << field.number;
    if ((seen_ & bit) != 0) {
      return Invalid("field ", field.number, " stands twice");
    }
    seen_ |= bit;
    return absl::OkStatus();
  }

 private:
  uint64_t seen_ = 0;  // by field number; the checked ones are below 64
};

class ModelChecker {
 public:
  absl::Status Check(std::string_view model) {
    FieldReader reader(model);
    OnceOnly once;
    while (!reader.done()) {
      Field field;
      absl::Status status = reader.Next(&field);
      if (status.ok()) status = CheckField(field, once);
      if (!status.ok()) return status;
    }
    return CheckWhole();
  }

  TokenizerFacts facts() const {
    return {.num_pieces = static_cast<int>(pieces_.size()),
            .adds_leading_space = adds_leading_space_};
  }

 private:
  absl::Status CheckField(const Field& field, OnceOnly& once) {
    switch (field.number) {
      case 1:
        return InContext(absl::StrCat("piece ", pieces_.size()),
                         CheckPiece(field));
      case 2:
        return CheckSpec("trainer_spec", field, once,
                         &ModelChecker::CheckTrainerField);
      case 3:
        return CheckSpec("normalizer_spec", field, once,
                         &ModelChecker::CheckNormalizerField);
      case 5:
        return CheckSpec("denormalizer_spec", field, once,
                         &ModelChecker::CheckDenormalizerField);
      case 4:  // Would be encoded on load, to compare.
        if (field.bytes.size() <= kMaxSpecBytes) return absl::OkStatus();
        return Invalid("self_test_data has ", field.bytes.size(),
                       " bytes, expected at most ", kMaxSpecBytes);
      default:
        return absl::OkStatus();  // an extension
    }
  }

  static absl::Status InContext(const std::string& context,
                                const absl::Status& status) {
    if (status.ok()) return status;
    return Invalid(context, ": ", status.message());
  }

  using CheckFieldMethod = absl::Status (ModelChecker::*)(const Field&,
                                                          OnceOnly&);

  absl::Status CheckSpec(const char* name, const Field& spec, OnceOnly& once,
                         CheckFieldMethod check_field) {
    absl::Status status = once.See(spec, Field::Wire::kBytes);
    if (!status.ok()) return InContext(name, status);
    if (spec.bytes.size() > kMaxSpecBytes) {
      return Invalid(name, " has ", spec.bytes.size(),
                     " bytes, expected at most ", kMaxSpecBytes);
    }
    FieldReader reader(spec.bytes);
    OnceOnly fields;
    while (!reader.done()) {
      Field field;
      status = reader.Next(&field);
      if (status.ok()) status = (this->*check_field)(field, fields);
      if (!status.ok()) return InContext(name, status);
    }
    return absl::OkStatus();
  }

  absl::Status CheckPiece(const Field& message) {
    if (message.wire != Field::Wire::kBytes) {
      return Invalid("is not a message");
    }
    if (pieces_.size() >= kMaxPieces) {
      return Invalid("expected at most ", kMaxPieces, " pieces");
    }
    FieldReader reader(message.bytes);
    OnceOnly once;
    Piece piece;
    while (!reader.done()) {
      Field field;
      absl::Status status = reader.Next(&field);
      if (status.ok()) status = CheckPieceField(field, once, &piece);
      if (!status.ok()) return status;
    }
    if (piece.text.empty()) return Invalid("it is empty");
    pieces_.push_back(piece);
    return absl::OkStatus();
  }

  static absl::Status CheckPieceField(const Field& field, OnceOnly& once,
                                      Piece* piece) {
    absl::Status status;
    switch (field.number) {
      case 1:
        status = once.See(field, Field::Wire::kBytes);
        if (!status.ok()) return status;
        piece->text = field.bytes;
        return CheckText(field.bytes);
      case 2: {
        status = once.See(field, Field::Wire::k32);
        const auto bits = static_cast<uint32_t>(field.value);
        if (status.ok() && !std::isfinite(std::bit_cast<float>(bits))) {
          return Invalid("its score is not finite");
        }
        return status;
      }
      case 3:
        status = once.See(field, Field::Wire::kVarint);
        piece->type = field.value;
        if (status.ok() && (field.value < kNormal || field.value > kByte)) {
          return Invalid("its type is ", field.value, ", expected 1 to 6");
        }
        return status;
      default:
        return absl::OkStatus();
    }
  }

  static absl::Status CheckText(std::string_view text) {
    if (text.size() > kMaxPieceBytes) {
      return Invalid("it has ", text.size(), " bytes, expected at most ",
                     kMaxPieceBytes);
    }
    if (!IsUtf8(text)) return Invalid("it is not UTF-8");
    if (text.find('\0') != text.npos) return Invalid("it contains a zero byte");
    return absl::OkStatus();
  }

  absl::Status CheckTrainerField(const Field& field, OnceOnly& once) {
    constexpr uint32_t kModelType = 3;
    constexpr uint32_t kWhitespaceAsSuffix = 24;
    constexpr uint32_t kByteFallback = 35;
    if (field.number != kModelType && field.number != kWhitespaceAsSuffix &&
        field.number != kByteFallback) {
      return absl::OkStatus();
    }
    const absl::Status status = once.See(field, Field::Wire::kVarint);
    if (!status.ok()) return status;
    if (field.number == kByteFallback) byte_fallback_ = field.value != 0;
    if (field.number == kModelType && field.value != 1 && field.value != 2) {
      return Invalid("model_type is ", field.value,
                     ", expected 1 (unigram) or 2 (BPE)");
    }
    if (field.number == kWhitespaceAsSuffix && field.value != 0) {
      return Invalid(
          "treat_whitespace_as_suffix is set, expected words that "
          "begin with their space");
    }
    return absl::OkStatus();
  }

  absl::Status CheckNormalizerField(const Field& field, OnceOnly& once) {
    switch (field.number) {
      case 2: {
        const absl::Status status = once.See(field, Field::Wire::kBytes);
        return InContext("precompiled_charsmap",
                         status.ok() ? CheckCharsMap(field.bytes) : status);
      }
      case 3:
        adds_leading_space_ = field.value != 0;
        return once.See(field, Field::Wire::kVarint);
      case 4:
      case 5:
        return once.See(field, Field::Wire::kVarint);
      default:
        return absl::OkStatus();
    }
  }

  absl::Status CheckDenormalizerField(const Field& field, OnceOnly& once) {
    // Its flags do not concern how text is encoded.
    return field.number == 2 ? CheckNormalizerField(field, once)
                             : absl::OkStatus();
  }

  // What can be said only after all fields.
  absl::Status CheckWhole() const {
    if (pieces_.empty()) return Invalid("expected pieces, found none");
    absl::Status status = CheckUnknown();
    if (status.ok()) status = CheckBytes();
    if (status.ok()) status = CheckDistinct();
    if (status.ok()) status = CheckNesting();
    return status;
  }

  absl::Status CheckUnknown() const {
    const auto num_unknown = std::count_if(
        pieces_.begin(), pieces_.end(),
        [](const Piece& piece) { return piece.type == kUnknown; });
    const bool any_normal =
        std::any_of(pieces_.begin(), pieces_.end(),
                    [](const Piece& piece) { return piece.type == kNormal; });
    if (num_unknown != 1) {
      return Invalid("found ", num_unknown,
                     " pieces of type unknown, expected one");
    }
    if (!any_normal) return Invalid("expected pieces of type normal");
    return absl::OkStatus();
  }

  absl::Status CheckBytes() const {
    std::vector<bool> found(256, false);
    size_t num_found = 0;
    for (size_t i = 0; i < pieces_.size(); ++i) {
      if (pieces_[i].type != kByte) continue;
      const int byte = ByteOf(pieces_[i].text);
      if (byte < 0) {
        return Invalid("piece ", i, ": expected a byte piece like <0x0A>");
      }
      if (!byte_fallback_) {
        return Invalid("piece ", i,
                       " is a byte, but trainer_spec.byte_fallback is false");
      }
      if (found[byte]) return Invalid("piece ", i, " stands twice");
      found[byte] = true;
      ++num_found;
    }
    if (byte_fallback_ && num_found != 256) {
      return Invalid("found ", num_found,
                     " byte pieces, expected 256 because of "
                     "trainer_spec.byte_fallback");
    }
    return absl::OkStatus();
  }

  absl::Status CheckDistinct() const {
    std::vector<std::string_view> texts;
    texts.reserve(pieces_.size());
    for (const Piece& piece : pieces_) texts.push_back(piece.text);
    std::sort(texts.begin(), texts.end());
    const auto twin = std::adjacent_find(texts.begin(), texts.end());
    if (twin == texts.end()) return absl::OkStatus();
    return Invalid("the piece \"", std::string(*twin), "\" stands twice");
  }

  // User-defined symbols that begin with one another, as in "=", "==", "===".
  absl::Status CheckNesting() const {
    std::vector<std::string_view> symbols;
    for (const Piece& piece : pieces_) {
      if (piece.type == kUserDefined) symbols.push_back(piece.text);
    }
    std::sort(symbols.begin(), symbols.end());
    std::vector<std::string_view> prefixes;  // of the symbol looked at
    for (const std::string_view symbol : symbols) {
      while (!prefixes.empty() && !symbol.starts_with(prefixes.back())) {
        prefixes.pop_back();
      }
      prefixes.push_back(symbol);
      if (prefixes.size() > kMaxNestedSymbols) {
        return Invalid("more than ", kMaxNestedSymbols,
                       " user-defined pieces begin with one another");
      }
    }
    return absl::OkStatus();
  }

  std::vector<Piece> pieces_;
  bool byte_fallback_ = false;
  bool adds_leading_space_ = true;
};

}  // namespace

absl::StatusOr<TokenizerFacts> CheckTokenizerModel(std::string_view model,
                                                   const std::string& file) {
  ModelChecker checker;
  const absl::Status status = checker.Check(model);
  if (!status.ok()) return Invalid(file, ": ", status.message());
  return checker.facts();
}

}  // namespace binarymos
