-- Checks a REST request before the transcoder does: query, content type and body.
-- SPECS, by route name: `query`, the parameters by each of their spellings, and `body`, the field that is the body, nil
-- when the RPC takes none.

local VALUES = { ["a number"] = "^%-?%d+$", ["true or false"] = "^[tf]%l+$" }

local function decoded(text)
  return (string.gsub(string.gsub(text, "+", " "), "%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end))
end

-- Returns reason, parameter and message of the first wrong query parameter, or nil.
local function query_fault(path, parameters)
  local start = string.find(path, "?", 1, true)
  if start == nil then return nil end
  local seen = {}
  for pair in string.gmatch(string.sub(path, start + 1), "[^&]+") do
    local name, value = string.match(pair, "^([^=]*)=?(.*)$")
    name, value = decoded(name), decoded(value)
    local parameter = parameters[name]
    if parameter == nil then return "UNKNOWN_FIELD", name, "there is no such query parameter" end
    if seen[parameter.name] and not parameter.repeated then
      return "INVALID_FIELD", name, "the query parameter is given twice"
    end
    seen[parameter.name] = true
    local pattern = VALUES[parameter.kind]
    if pattern and not string.find(value, pattern) then return "INVALID_FIELD", name, "must be " .. parameter.kind end
  end
end

local function refuse(handle, status, reason, detail, violations)
  local instance = handle:headers():get("x-request-id") or ""
  handle:respond(
    { [":status"] = tostring(status), ["content-type"] = "application/problem+json" },
    problem(reason, status, detail, instance, nil, violations)
  )
end

function envoy_on_request(handle)
  local spec = SPECS[handle:streamInfo():routeName()]
  if spec == nil then return end
  local headers = handle:headers()
  local content_type = headers:get("content-type")

  local reason, name, message = query_fault(headers:get(":path"), spec.query)
  if reason ~= nil then
    local field = printable((string.gsub(name, '[\\"]', "?")))
    return refuse(handle, 400, reason, field .. ": " .. message, violation(field, nil, message))
  end

  local body = handle:body()
  local size = body and body:length() or 0
  if size == 0 then return end
  if spec.body == nil then return refuse(handle, 400, "INVALID_FIELD", "this method takes no body") end
  if content_type ~= nil and not string.find(string.lower(content_type) .. ";", "^application/json%s*;") then
    return refuse(handle, 415, "UNSUPPORTED_MEDIA_TYPE", "the body must be application/json")
  end
  local fault = first_fault(body:getBytes(0, size), spec.body)
  if fault ~= nil then
    local field = string.gsub(string.sub(fault.pointer, 2), "/", ".")
    local detail = (field == "" and "body" or field) .. ": " .. fault.message
    refuse(handle, 400, fault.reason, detail, violation(field, fault.pointer, fault.message))
  end
end
