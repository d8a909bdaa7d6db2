# Where everything lies. Change the defaults here, or set a variable in the environment, which wins.
# Main_Data_Path takes what the stages make, and the teachers: pretrained_models/<dataset>_pretrained_models/<Name>.pth
# train_dir, val_dir and patch_dir hold one folder a dataset: <val_dir>/cifar100/<class>/<image>

export Main_Data_Path="${Main_Data_Path:-$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")" && pwd)/outputs}"
export train_dir="${train_dir:-$Main_Data_Path/train}"
export val_dir="${val_dir:-$Main_Data_Path/val}"
export patch_dir="${patch_dir:-$Main_Data_Path/patches}"

for name in Main_Data_Path train_dir val_dir patch_dir; do # a ~ in quotes, which the shell left
    export "$name=${!name/#\~\//$HOME/}"
done
