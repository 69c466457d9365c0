-- Whether the text of a scalar fits its field, in a body or a query. Only what can be told in passing; the transcoder
-- checks everything again.
--
-- A field says its `format`: "int32", "int64", "base64", "time", "duration" or "enum", the last with `enum`, a table
-- {names = {NAME = true}, message}. A field without one takes anything of its kind.

-- Largest magnitudes, in digits, and the power of two that no number of another notation may reach.
local INTEGERS = {
  int32 = { high = "2147483647", low = "2147483648", bound = 2 ^ 31, message = "must be a 32-bit integer" },
  int64 = {
    high = "9223372036854775807", low = "9223372036854775808", bound = 2 ^ 63, message = "must be a 64-bit integer",
  },
}
-- Longer is no integer that anyone meant, and would only cost time.
local MAX_INTEGER = 64

local function is_integer(text, range)
  if #text > MAX_INTEGER then return false end
  local sign, digits = string.match(text, "^(%-?)0*(%d+)$")
  if digits == nil then -- 7.0 and 1e3 are integers, too
    local value = string.find(text, "^%-?%d+%.?%d*[eE]?[+-]?%d*$") and tonumber(text)
    return value ~= nil and value ~= false and value % 1 == 0 and value >= -range.bound and value < range.bound
  end
  local most = sign == "-" and range.low or range.high
  return #digits < #most or #digits == #most and digits <= most
end

local DAYS = { 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31 }

local function days_of(year, month)
  if month == 2 and year % 4 == 0 and (year % 100 ~= 0 or year % 400 == 0) then return 29 end
  return DAYS[month] or 0
end

-- A fraction of a second as protobuf takes it: nothing, or a point and up to nine digits.
local function is_fraction(text) return text == "" or #text <= 10 and string.find(text, "^%.%d+$") ~= nil end

-- Longer is no time and no duration.
local MAX_MOMENT = 64

local function is_time(text)
  if #text > MAX_MOMENT then return false end
  local form = "^(%d%d%d%d)%-(%d%d)%-(%d%d)T(%d%d):(%d%d):(%d%d)([%d.]*)(.*)$"
  local year, month, day, hour, minute, second, fraction, zone = string.match(text, form)
  if year == nil or not is_fraction(fraction) then return false end
  year, month, day = tonumber(year), tonumber(month), tonumber(day)
  if year < 1 or day < 1 or day > days_of(year, month) then return false end
  if tonumber(hour) > 23 or tonumber(minute) > 59 or tonumber(second) > 59 then return false end
  if zone == "Z" then return true end
  local sign, hours, minutes = string.match(zone, "^([+-])(%d%d):(%d%d)$")
  if hours == nil or tonumber(hours) > 23 or tonumber(minutes) > 59 then return false end
  -- In UTC it must lie in the years 1 to 9999, too.
  local of_day, offset = hour * 60 + minute, hours * 60 + minutes
  if sign == "+" and year == 1 and month == 1 and day == 1 then return of_day >= offset end
  if sign == "-" and year == 9999 and month == 12 and day == 31 then return of_day + offset < 1440 end
  return true
end

-- 10,000 years: what protobuf's JSON takes.
local MAX_SECONDS = 315576000000

local function is_duration(text)
  if #text > MAX_MOMENT then return false end -- what two parts of a pattern can both take, takes the square of its length
  local seconds, fraction = string.match(text, "^%-?(%d+)([%d.]*)s$")
  return seconds ~= nil and is_fraction(fraction) and #seconds < 20 and tonumber(seconds) <= MAX_SECONDS
end

local function is_enum(text, names)
  -- Protobuf's JSON also takes "open-door" for OPEN_DOOR, and any number.
  return names[string.upper((string.gsub(string.sub(text, 1, 200), "-", "_")))] or is_integer(text, INTEGERS.int32)
end

-- What is wrong with `text` as a value of `field`, or nil. Not for base64: see `base64_fault`.
local function value_fault(field, text)
  local range = INTEGERS[field.format]
  if range ~= nil then return not is_integer(text, range) and range.message or nil end
  if field.format == "time" then return not is_time(text) and "must be a time like 2026-01-31T12:00:00Z" or nil end
  if field.format == "duration" then return not is_duration(text) and "must be a duration in seconds like 2.5s" or nil end
  if field.format == "enum" then return not is_enum(text, field.enum.names) and field.enum.message or nil end
  return nil
end

-- Of either alphabet, without white space.
local BASE64 = { '^[%w+/]*()(=?=?)"', '^[%w_-]*()(=?=?)"' }

-- The same for base64 between `first` and the quote that ends it. Nothing is copied: it can be megabytes.
local function base64_fault(text, first)
  for _, form in ipairs(BASE64) do
    local _, _, after, padding = string.find(text, form, first)
    if after ~= nil then
      local size = after - first
      local is_whole = size % 4 ~= 1 and (padding == "" or (size + #padding) % 4 == 0)
      return not is_whole and "must be base64" or nil
    end
  end
  -- White space does not count: for the transcoder to judge.
  return not string.find(text, '^[%w+/_-]* [%w+/_ -]*=?=?"', first) and "must be base64" or nil
end

local UTF8 = {
  "[\194-\223][\128-\191]",
  "\224[\160-\191][\128-\191]",
  "[\225-\236\238\239][\128-\191][\128-\191]",
  "\237[\128-\159][\128-\191]", -- no surrogates
  "\240[\144-\191][\128-\191][\128-\191]",
  "[\241-\243][\128-\191][\128-\191][\128-\191]",
  "\244[\128-\143][\128-\191][\128-\191]",
}

-- Whether `text` is UTF-8 as protobuf takes it: shortest forms only, no surrogates, nothing beyond U+10FFFF.
local function is_utf8(text)
  if not string.find(text, "[\128-\255]") then return true end
  -- A space in the place of each character: what stood around it must not become one.
  for _, character in ipairs(UTF8) do text = string.gsub(text, character, " ") end
  return not string.find(text, "[\128-\255]")
end
