# cmake -D OUT=page.cc -D FOLDER=src/server/page -P embed_page.cmake: the page's files as C++ strings.
set(files index.html:/:text/html page.css:/page.css:text/css page.js:/page.js:text/javascript)
set(text "#include \"server/page.h\"\n\nnamespace ostro::server {\nnamespace {\n\n")
string(APPEND text "constexpr PageFile kFiles[] = {\n")
foreach(entry ${files})
  string(REPLACE ":" ";" parts ${entry})
  list(GET parts 0 name)
  list(GET parts 1 path)
  list(GET parts 2 type)
  file(READ ${FOLDER}/${name} content)
  string(APPEND text "    {\"${path}\", \"${type}; charset=utf-8\", R\"OSTRO_PAGE(${content})OSTRO_PAGE\"},\n")
endforeach()
string(APPEND text "};\n\n}  // namespace\n\nconst PageFile* page_file(std::string_view path) {\n"
                   "  for (const PageFile& file : kFiles)\n    if (file.path == path) return &file;\n"
                   "  return nullptr;\n}\n\n}  // namespace ostro::server\n")
file(WRITE ${OUT} "${text}")
