-- Cuts one field out of a unary gRPC response, so that REST answers with the bare resource.
-- FIELDS: number of the field by route name.

-- The varint at `position` and the position after it.
local function varint(bytes, position)
  local value, scale = 0, 1
  while true do
    local byte = string.byte(bytes, position)
    if byte == nil then return nil end
    position = position + 1
    if byte < 128 then return value + byte * scale, position end
    value = value + (byte - 128) * scale
    scale = scale * 128
  end
end

-- The bytes of the length-delimited field `wanted`, the last if there are several; "" if there is none; nil if the
-- message cannot be read.
local function field(message, wanted)
  local found, position = "", 1
  while position <= #message do
    local tag, size
    tag, position = varint(message, position)
    if tag == nil then return nil end
    local kind = tag % 8
    if kind == 0 then
      size, position = varint(message, position)
      if size == nil then return nil end
    elseif kind == 2 then
      size, position = varint(message, position)
      if size == nil then return nil end
      if (tag - kind) / 8 == wanted then found = string.sub(message, position, position + size - 1) end
      position = position + size
    elseif kind == 1 then
      position = position + 8
    elseif kind == 5 then
      position = position + 4
    else
      return nil
    end
  end
  return found
end

function envoy_on_response(handle)
  local number = FIELDS[handle:streamInfo():routeName()]
  if number == nil then return end
  local body = handle:body()
  if body == nil or body:length() < 5 then return end
  local bytes = body:getBytes(0, body:length())
  if string.byte(bytes, 1) ~= 0 then return end -- compressed: nobody asked for that
  local inner = field(string.sub(bytes, 6), number)
  if inner == nil then return end
  local size = #inner
  local prefix = string.char(
    0, math.floor(size / 16777216) % 256, math.floor(size / 65536) % 256, math.floor(size / 256) % 256, size % 256
  )
  body:setBytes(prefix .. inner)
end
