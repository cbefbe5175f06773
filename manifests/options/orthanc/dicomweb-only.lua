-- Over HTTP only DICOMweb: searching, reading and storing. Nobody deletes, changes or sends on anything.
function IncomingHttpRequestFilter(method, uri, ip, username, httpHeaders)
  local dicomweb = string.sub(uri, 1, 11) == '/dicom-web/'
  return dicomweb and (method == 'GET' or (method == 'POST' and string.sub(uri, 1, 18) == '/dicom-web/studies'))
end
