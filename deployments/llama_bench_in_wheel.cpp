// An entry to llama-bench that can be called from outside, and what it takes from llama.cpp's `common` but the xllamacpp
// wheel leaves out. Built by build_engines.sh, loaded by benchmarks/llama_bench_in_wheel.py.
#include <cstdarg>
#include <cstdio>
#include <string>

int llama_bench(int argc, char ** argv);

extern "C" __attribute__((visibility("default"))) int llama_bench_in_wheel(int argc, char ** argv) {
    return llama_bench(argc, argv);
}

std::string string_format(const char * format, ...) {
    char told[4096];
    va_list values;
    va_start(values, format);
    vsnprintf(told, sizeof told, format, values);
    va_end(values);
    return told;
}

std::string string_strip(const std::string & text) {
    const size_t first = text.find_first_not_of(" \t\r\n");
    const size_t last = text.find_last_not_of(" \t\r\n");
    return first == std::string::npos ? "" : text.substr(first, last - first + 1);
}

// Only its default, no mask; llama-bench refuses any other.
bool parse_cpu_mask(const std::string & mask, bool (&)[512]) { return mask == "0x0"; }

namespace common_arg_utils {
bool is_truthy(const std::string & value) { return value == "on" || value == "enabled" || value == "true" || value == "1"; }
bool is_falsey(const std::string & value) { return value == "off" || value == "disabled" || value == "false" || value == "0"; }
bool is_autoy(const std::string & value) { return value == "auto" || value == "-1"; }
} // namespace common_arg_utils
