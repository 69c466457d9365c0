-- What is done to a request before any filter looks at its token or its body.
-- ROUTING_HEADER: its name. LIMITS, by route name of what is transcoded: how many bytes a body may have.

function envoy_on_request(handle)
  local headers = handle:headers()
  -- The name of the scheme has no case (RFC 9110), but the token filter looks for "Bearer " to the letter.
  local token = string.match(headers:get("authorization") or "", "^[Bb][Ee][Aa][Rr][Ee][Rr] +(.*)$")
  if token ~= nil then headers:replace("authorization", "Bearer " .. token) end
  -- Clients of gRPC send the routing header themselves. Of REST the path has it.
  local namespace = string.match(headers:get(":path"), "^/v1/namespaces/([^/:?]+)")
  if namespace ~= nil then headers:replace(ROUTING_HEADER, "namespace=" .. namespace) end

  local limit = LIMITS[handle:streamInfo():routeName()]
  if limit == nil then return end
  local announced = headers:get("content-length") -- returns nothing, not nil, when there is none
  announced = announced and tonumber(announced)
  if announced ~= nil and announced <= limit then return end -- the codec holds the client to it
  -- An answer before the end of the body would close the connection under a client that is still sending, which then
  -- never reads it. So the rest is read and thrown away, and strict.lua answers at the end.
  local received, refused = 0, announced ~= nil
  for chunk in handle:bodyChunks() do
    received = received + chunk:length()
    if refused or received > limit then
      refused = true
      chunk:setBytes("")
    end
  end
  if refused then handle:streamInfo():dynamicMetadata():set("strandline", "body_too_large", true) end
end
