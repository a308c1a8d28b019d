from sgl_kernel_rebuild.cli import main

main()
