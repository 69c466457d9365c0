-- What every script needs to write a problem (RFC 9457). Strings that come from JSON stay escaped as they were read,
-- so that they can be written again without decoding.

-- "ETAG_MISMATCH" -> "Etag mismatch"
local function title(reason)
  local words = string.gsub(string.lower(reason), "_", " ")
  return string.upper(string.sub(words, 1, 1)) .. string.sub(words, 2)
end

-- All but `reason` and `status` are already JSON (`detail` and `instance`: the inside of a JSON string).
local function problem(reason, status, detail, instance, metadata, violations)
  return table.concat({
    '{"type":"urn:strandline:', reason, '","title":"', title(reason), '","status":', status, ',"detail":"', detail,
    '","instance":"', instance, '","reason":"', reason, '","metadata":', metadata or "{}",
    ',"violations":[', violations or "", "]}\n",
  })
end

-- One violation; `pointer` is nil for what is not part of the body.
local function violation(field, pointer, message)
  local where = pointer and '"' .. pointer .. '"' or "null"
  return '{"field":"' .. field .. '","pointer":' .. where .. ',"message":"' .. message .. '"}'
end
