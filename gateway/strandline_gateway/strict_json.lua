-- Refuses JSON that the transcoder would pass over in silence (unknown and repeated fields, too deep nesting, trailing
-- text) and names the field in what it would only complain about.
--
-- A field is {name, kind, repeated, message, oneof, format, enum}: `kind` is what JSON it takes (see KINDS), `message`
-- the fields inside by each of their spellings, nil for a leaf and for free-form JSON (Struct); `oneof` the choice that
-- it is part of; `format` and `enum` as strict_values.lua has them. In free-form JSON only syntax, repeated keys, depth
-- and the range of numbers are looked at.
--
-- No copy of a value is made, only of keys: a body of 3 MiB that is mostly base64 is two calls of memchr per string.

local byte, find, sub, gsub = string.byte, string.find, string.sub, string.gsub
-- Levels of free-form JSON, its root included. Protobuf runtimes stop at 100 levels, a Struct takes three for one.
local MAX_DEPTH = 32

-- The walk in progress; it never yields, so one set of variables is enough.
local text, position, depth
local limit          -- depth that may not be exceeded
local in_free_form
-- The next of their kind, searched for again only when passed, so that the text is scanned once.
local next_backslash, next_control
local keys = {}      -- raw key or index at each depth, for the pointer

-- Inside of a JSON string that is safe to send back, whatever it held.
local function printable(raw)
  raw = gsub(sub(raw, 1, 200), "[%z\1-\31\127]", "?")
  if not is_utf8(raw) then raw = gsub(raw, "[\128-\255]", "?") end
  -- An escape that is not whole would swallow the quote that we put behind it.
  if find((gsub(gsub(raw, "\\u%x%x%x%x", ""), '\\["\\/bfnrt]', "")), '[\\"]') then raw = gsub(raw, '[\\"]', "?") end
  return raw
end

local function pointer(levels)
  local parts = {}
  for level = 1, levels do
    parts[level] = "/" .. gsub(gsub(printable(tostring(keys[level])), "~", "~0"), "/", "~1")
  end
  return table.concat(parts)
end

-- Ends the walk. `outwards`: how many levels above the value at hand the fault lies.
local function fail(message, reason, outwards)
  error({ reason = reason or "INVALID_FIELD", pointer = pointer(depth - (outwards or 0)), message = message })
end

-- Skips white space and returns the byte that follows.
local function peek()
  local b = byte(text, position)
  while b == 32 or b == 10 or b == 13 or b == 9 do
    position = position + 1
    b = byte(text, position)
  end
  return b
end

local function walk_escape(at)
  local escaped = byte(text, at + 1)
  if escaped == 117 then -- u
    if not find(text, "^%x%x%x%x", at + 2) then fail("a broken escape in a string") end
    if not find(text, "^[dD][89a-fA-F]", at + 2) then return at + 6 end
    if find(text, "^[dD][89abAB]%x%x\\u[dD][c-fC-F]%x%x", at + 2) then return at + 12 end
    fail("half of a surrogate pair")
  end
  if escaped == nil or not find('"\\/bfnrt', sub(text, at + 1, at + 1), 1, true) then
    fail("a broken escape in a string")
  end
  return at + 2
end

-- Steps over the string at `position`. Returns its first and last position, and whether it holds escapes.
local function walk_string()
  local first = position + 1
  local from = first
  local quote = find(text, '"', from, true)
  while true do
    if quote == nil then fail("a string without end") end
    if next_backslash < from then next_backslash = find(text, "\\", from, true) or math.huge end
    if next_control < from then next_control = find(text, "[%z\1-\31]", from) or math.huge end
    if next_control < quote then fail("a control character in a string") end
    if next_backslash > quote then
      position = quote + 1
      return first, quote - 1, from ~= first
    end
    from = walk_escape(next_backslash)
    -- Searched for again only when that quote was the escaped one: otherwise the cost would be quadratic.
    if quote < from then quote = find(text, '"', from, true) end
  end
end

local PLAIN = { b = "\b", f = "\f", n = "\n", r = "\r", t = "\t" }

local function utf8(code)
  local char, floor = string.char, math.floor
  if code < 128 then return char(code) end
  if code < 2048 then return char(192 + floor(code / 64), 128 + code % 64) end
  if code < 65536 then return char(224 + floor(code / 4096), 128 + floor(code / 64) % 64, 128 + code % 64) end
  return char(240 + floor(code / 262144), 128 + floor(code / 4096) % 64, 128 + floor(code / 64) % 64, 128 + code % 64)
end

-- The key that stands for `raw` when keys are compared: "a" and "\u0061" are the same.
local function unescaped(raw)
  raw = gsub(raw, "\\(.)(%x?%x?%x?%x?)", function(kind, digits)
    if kind == "u" then return utf8(tonumber(digits, 16)) end
    return (PLAIN[kind] or kind) .. digits
  end)
  -- Two halves of a surrogate pair are one character.
  return (gsub(raw, "\237([\160-\175])(.)\237([\176-\191])(.)", function(a, b, c, d)
    local high = (byte(a) - 160) * 64 + byte(b) - 128
    return utf8(65536 + high * 1024 + (byte(c) - 176) * 64 + byte(d) - 128)
  end))
end

local function walk_digits()
  local b = byte(text, position)
  if b == nil or b < 48 or b > 57 then fail("a broken number") end
  repeat
    position = position + 1
    b = byte(text, position)
  until b == nil or b < 48 or b > 57
  return b
end

-- Returns the first position of the number.
local function walk_number()
  local first, has_exponent = position, false
  if byte(text, position) == 45 then position = position + 1 end
  local b
  if byte(text, position) == 48 then -- a leading zero stands alone
    position = position + 1
    b = byte(text, position)
  else
    b = walk_digits()
  end
  if b == 46 then -- .
    position = position + 1
    b = walk_digits()
  end
  if b == 101 or b == 69 then -- e E
    position = position + 1
    b = byte(text, position)
    if b == 43 or b == 45 then position = position + 1 end
    walk_digits()
    has_exponent = true
  end
  if (has_exponent or position - first > 300) and math.abs(tonumber(sub(text, first, position - 1))) == math.huge then
    fail("a number beyond the range of double")
  end
  return first
end

local function walk_word(word)
  if sub(text, position, position + #word - 1) ~= word then fail("not a JSON value") end
  position = position + #word
end

local walk_value

-- Steps over the key and the colon. Returns the field of the value, nil in free-form JSON.
local function walk_key(fields, seen)
  local first, last, escaped = walk_string()
  local raw = sub(text, first, last)
  keys[depth] = raw
  local key = escaped and unescaped(raw) or raw
  local field
  if fields then
    field = fields[key]
    if field == nil then fail("there is no such field", "UNKNOWN_FIELD") end
    key = field.name
  end
  if seen[key] then fail("the field is given twice") end
  seen[key] = true
  if peek() ~= 58 then fail("a colon is missing after the key") end
  position = position + 1
  if field and field.oneof and peek() ~= 110 then -- null is unset
    local choice = "oneof " .. field.oneof -- no name of a field
    if seen[choice] then fail("excludes a field that is also set") end
    seen[choice] = true
  end
  return field
end

local function enter()
  depth = depth + 1
  if depth > limit then
    depth = depth - 1
    fail("nested deeper than " .. MAX_DEPTH .. " levels")
  end
  position = position + 1
end

local function walk_object(fields)
  enter()
  keys[depth] = ""
  local b = peek()
  if b == 125 then
    position = position + 1
  else
    local seen = {}
    repeat
      if b ~= 34 then fail("a key in quotes is missing", nil, 1) end
      walk_value(walk_key(fields, seen))
      b = peek()
      position = position + 1
      if b == 44 then
        b = peek()
      elseif b ~= 125 then
        fail("a comma or a closing brace is missing")
      else
        b = nil
      end
    until b == nil
  end
  depth = depth - 1
end

-- The elements of a repeated field, or free-form when `field` is nil.
local function walk_array(field)
  enter()
  keys[depth] = 0
  if peek() == 93 then
    position = position + 1
  else
    while true do
      walk_value(field, true)
      local b = peek()
      position = position + 1
      if b == 93 then break end
      if b ~= 44 then fail("a comma or a closing bracket is missing") end
      keys[depth] = keys[depth] + 1
    end
  end
  depth = depth - 1
end

local function bytes_of(characters)
  local set = {}
  for index = 1, #characters do set[byte(characters, index)] = true end
  return set
end

-- What the first byte of a value may be. Numbers may stand in quotes: 64 bits do not fit into a JSON number.
local KINDS = {
  ["an object"] = bytes_of("{"),
  ["an array"] = bytes_of("["),
  ["a string"] = bytes_of('"'),
  ["a number"] = bytes_of('-0123456789"'),
  ["a string or a number"] = bytes_of('-0123456789"'),
  ["true or false"] = bytes_of("tf"),
}

local function check_kind(kind, b)
  if kind ~= nil and b ~= 110 and not KINDS[kind][b] then fail("must be " .. kind) end -- null is unset
end

local function walk_nested(b, field, is_list)
  local outer_limit, outer_form = limit, in_free_form
  if not is_list and not (field and field.message) and not in_free_form then -- levels count from here
    limit, in_free_form = depth + MAX_DEPTH, true
  end
  if b == 123 then
    walk_object(field and field.message)
  else
    walk_array(is_list and field or nil)
  end
  limit, in_free_form = outer_limit, outer_form
end

-- Steps over a string or a number that must have the format of `field`.
local function walk_formatted(field, b)
  local first, last, escaped
  if b == 34 then
    first, last, escaped = walk_string()
  else
    first = walk_number()
    last = position - 1
  end
  local fault
  if field.format ~= "base64" then
    local raw = sub(text, first, last)
    fault = value_fault(field, escaped and unescaped(raw) or raw)
  elseif not escaped then -- white space, which base64 may hold: for the transcoder to judge
    fault = base64_fault(text, first)
  end
  if fault ~= nil then fail(fault) end
end

-- `is_element`: the value is one element of the repeated field.
function walk_value(field, is_element)
  local b = peek()
  if b == nil then fail("the JSON ends early") end
  local is_list = field ~= nil and field.repeated and not is_element
  if field ~= nil then check_kind(is_list and "an array" or field.kind, b) end
  local is_number = b == 45 or b >= 48 and b <= 57
  if (b == 34 or is_number) and field ~= nil and field.format ~= nil then
    walk_formatted(field, b)
  elseif b == 34 then
    walk_string()
  elseif b == 123 or b == 91 then
    walk_nested(b, field, is_list)
  elseif b == 116 then
    walk_word("true")
  elseif b == 102 then
    walk_word("false")
  elseif b == 110 then
    walk_word("null")
  elseif is_number then
    walk_number()
  else
    fail("not a JSON value")
  end
end

-- Returns nil when `body` is one JSON value that fits `field`, otherwise {reason, pointer, message}.
local function first_fault(body, field)
  text, position, depth, limit, in_free_form = body, 1, 0, MAX_DEPTH, false
  next_backslash, next_control = 0, 0
  local sound, fault = pcall(function()
    walk_value(field)
    if peek() ~= nil then fail("text after the JSON value") end
  end)
  text = nil -- up to 4 MiB, not to be kept until the next request
  if sound then return nil end
  -- Envoy lets a request pass when a script fails, so a fault of our own must not leave this function as an error.
  return type(fault) == "table" and fault or { reason = "INVALID_FIELD", pointer = "", message = "cannot be read" }
end
