-- Rewrites what the transcoder made of a gRPC error into a problem, and hides gRPC's own headers on REST answers.
-- FALLBACKS, by gRPC code: the HTTP status, and reason and detail for errors that carry no reason of ours.
-- TOO_LARGE: one of the same form. BODIES, by route name: the request field that is the body.

local HIDDEN = { "grpc-status", "grpc-message", "grpc-status-details-bin", "grpc-accept-encoding", "strandline-http-status" }

-- The JSON value at `position` and the position after it: tables for objects and arrays, strings still escaped, and
-- everything else as text. Returns nil when it cannot be read; the input comes from the transcoder, not from outside.
local function read(text, position)
  position = string.find(text, "[^%s]", position)
  local first = position and string.sub(text, position, position)
  if first == '"' then
    local stop = position + 1
    while true do
      stop = string.find(text, '["\\]', stop)
      if stop == nil then return nil end
      if string.byte(text, stop) == 34 then return string.sub(text, position + 1, stop - 1), stop + 1 end
      stop = stop + 2
    end
  elseif first == "{" or first == "[" then
    local found, close = {}, first == "{" and "}" or "]"
    position = string.find(text, "[^%s]", position + 1)
    if position and string.sub(text, position, position) == close then return found, position + 1 end
    while position do
      local key = #found + 1
      if first == "{" then
        key, position = read(text, position)
        position = position and string.match(text, "^%s*:()", position)
        if position == nil then return nil end
      end
      found[key], position = read(text, position)
      local separator
      if position then separator, position = string.match(text, "^%s*([,%]}])()", position) end
      if separator == close then return found, position end
    end
    return nil
  end
  local word, next_position = string.match(text, "^([%w%.%+%-]+)()", position or 1)
  return word, next_position
end

-- A service names a field by its path in the request, or by a JSON pointer into the body.
local function rendered(entry, body_field)
  local field, message = entry.field or "", entry.description or ""
  if string.sub(field, 1, 1) == "/" then
    return violation((string.gsub(string.sub(field, 2), "/", ".")), field, message)
  end
  local inside = body_field == "*" and field or nil
  if body_field and string.sub(field, 1, #body_field + 1) == body_field .. "." then
    inside = string.sub(field, #body_field + 2)
  end
  if inside == nil then return violation(field, nil, message) end
  local camel = string.gsub(inside, "_(%l)", string.upper)
  local pointer = string.gsub(string.gsub(camel, "%[(%d+)%]", ".%1"), "%.", "/")
  return violation(field, "/" .. pointer, message)
end

-- Metadata and violations of our own details; the reason is nil when there are none.
local function details_of(status, body_field)
  local reason, metadata, violations = nil, {}, {}
  for _, detail in ipairs(status.details or {}) do
    local kind = detail["@type"] or ""
    if string.find(kind, "google.rpc.ErrorInfo", 1, true) and detail.domain == "strandline" then
      reason = detail.reason
      for key, value in pairs(detail.metadata or {}) do
        metadata[#metadata + 1] = '"' .. key .. '":"' .. value .. '"'
      end
      table.sort(metadata)
    elseif string.find(kind, "google.rpc.BadRequest", 1, true) then
      for _, entry in ipairs(detail.fieldViolations or {}) do
        violations[#violations + 1] = rendered(entry, body_field)
      end
    end
  end
  return reason, "{" .. table.concat(metadata, ",") .. "}", table.concat(violations, ",")
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local content_type = headers:get("content-type") or ""
  if string.sub(content_type, 1, 16) == "application/grpc" then return end
  local forced = headers:get("strandline-http-status")
  for _, name in ipairs(HIDDEN) do headers:remove(name) end
  local http_status = tonumber(headers:get(":status"))
  if http_status == 200 and forced ~= nil then headers:replace(":status", forced) end
  if http_status < 400 or string.sub(content_type, 1, 16) ~= "application/json" then return end

  local body = handle:body()
  local trailers = handle:trailers() -- nil when the service sent an error and nothing before it
  headers = handle:headers() -- the old reference does not live across `body`
  local status = body and read(body:getBytes(0, body:length()), 1)
  if type(status) ~= "table" then status = {} end
  local code = tonumber(status.code) or 2
  local reason, metadata, violations = details_of(status, BODIES[handle:streamInfo():routeName()])
  local fallback = FALLBACKS[code] or FALLBACKS[2]
  local detail = status.message or ""
  -- JSON within the edge's limit can be larger as protobuf than a service takes.
  if code == 8 and string.find(detail, "larger than max", 1, true) then fallback = TOO_LARGE end
  local usual = fallback.status
  if reason == nil or fallback.reason == "INTERNAL" then
    reason, detail, metadata, violations = fallback.reason, fallback.detail, nil, nil
    if reason == "OVERLOADED" then usual = 503 end
  end
  local retry_after = headers:get("retry-after")
  if trailers ~= nil then
    forced = forced or trailers:get("strandline-http-status")
    retry_after = retry_after or trailers:get("retry-after")
  end
  http_status = tonumber(forced) or usual
  if http_status == 429 or http_status == 503 then retry_after = retry_after or "1" end
  if retry_after ~= nil then headers:replace("retry-after", retry_after) end
  headers:replace(":status", tostring(http_status))
  headers:replace("content-type", "application/problem+json")
  local instance = headers:get("x-request-id") or ""
  body:setBytes(problem(reason, http_status, detail, instance, metadata, violations))
end
