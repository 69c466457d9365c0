-- Checks a REST request before the transcoder does: path, query, content type and body.
-- SPECS, by route name: `query`, the parameters by each of their spellings, and `body`, the field that is the body, nil
-- when the RPC takes none.

local function unescaped_path(text)
  return (string.gsub(text, "%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end))
end

local function decoded(text) return unescaped_path((string.gsub(text, "+", " "))) end

-- What is wrong with the value of a query parameter, or nil.
local function parameter_fault(parameter, value)
  -- The service could not read the message, and the fault would be taken for its own.
  if not is_utf8(value) then return "must be UTF-8" end
  if parameter.kind == "true or false" and value ~= "true" and value ~= "false" then return "must be true or false" end
  return value_fault(parameter, value)
end

-- Returns reason, place and message of what is wrong with the path, or the first wrong query parameter; or nil.
local function path_fault(path, parameters)
  local start = string.find(path, "?", 1, true)
  if not is_utf8(unescaped_path(string.sub(path, 1, (start or 0) - 1))) then
    return "INVALID_FIELD", "path", "must be UTF-8"
  end
  if start == nil then return nil end
  local seen, chosen = {}, {}
  for pair in string.gmatch(string.sub(path, start + 1), "[^&]+") do
    local name, value = string.match(pair, "^([^=]*)=?(.*)$")
    name, value = decoded(name), decoded(value)
    local parameter = parameters[name]
    if parameter == nil then return "UNKNOWN_FIELD", name, "there is no such query parameter" end
    if seen[parameter.name] and not parameter.repeated then
      return "INVALID_FIELD", name, "the query parameter is given twice"
    end
    seen[parameter.name] = true
    if parameter.oneof then
      local other = chosen[parameter.oneof]
      if other and other ~= name then return "INVALID_FIELD", name, "excludes " .. other end
      chosen[parameter.oneof] = name
    end
    local fault = parameter_fault(parameter, value)
    if fault ~= nil then return "INVALID_FIELD", name, fault end
  end
end

local function refuse(handle, status, reason, detail, violations)
  local instance = handle:headers():get("x-request-id") or ""
  handle:respond(
    { [":status"] = tostring(status), ["content-type"] = "application/problem+json" },
    problem(reason, status, detail, instance, nil, violations)
  )
end

-- Why the body cannot be read as JSON, by its headers, or nil.
local function media_fault(headers)
  local content_type = string.lower(headers:get("content-type") or "application/json") .. ";"
  if not string.find(content_type, "^application/json%s*;") then return "the body must be application/json" end
  local charset = string.match(content_type, ';%s*charset="?([^";%s]*)')
  if charset ~= nil and charset ~= "utf-8" then return "the body must be UTF-8" end
  local coding = headers:get("content-encoding")
  if coding ~= nil and string.lower(coding) ~= "identity" then return "the body must not be compressed" end
  return nil
end

local function is_too_large(handle)
  local marks = handle:streamInfo():dynamicMetadata():get("strandline") -- of arrival.lua
  return marks ~= nil and marks.body_too_large
end

function envoy_on_request(handle)
  local spec = SPECS[handle:streamInfo():routeName()]
  if spec == nil then return end
  -- Waits for the end, whatever is wrong: a client that is still sending might never read the answer.
  local body = handle:body()
  local headers = handle:headers()
  if is_too_large(handle) then return refuse(handle, 413, "BODY_TOO_LARGE", "the body is too large") end
  -- The transcoder would take it for a call that needs no transcoding.
  if string.find(string.lower(headers:get("content-type") or ""), "^application/grpc") then
    return refuse(handle, 415, "UNSUPPORTED_MEDIA_TYPE", "gRPC is served under the names of its methods")
  end

  local reason, name, message = path_fault(headers:get(":path"), spec.query)
  if reason ~= nil then
    local field = printable((string.gsub(name, '[\\"]', "?")))
    return refuse(handle, 400, reason, field .. ": " .. message, violation(field, nil, message))
  end

  local size = body and body:length() or 0
  if size == 0 then return end
  if spec.body == nil then return refuse(handle, 400, "INVALID_FIELD", "this method takes no body") end
  local media = media_fault(headers)
  if media ~= nil then return refuse(handle, 415, "UNSUPPORTED_MEDIA_TYPE", media) end
  local fault = first_fault(body:getBytes(0, size), spec.body)
  if fault ~= nil then
    local field = string.gsub(string.sub(fault.pointer, 2), "/", ".")
    local detail = (field == "" and "body" or field) .. ": " .. fault.message
    refuse(handle, 400, fault.reason, detail, violation(field, fault.pointer, fault.message))
  end
end
